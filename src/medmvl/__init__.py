"""MedM-VL: build, train, evaluate and deploy small medical vision-language models."""
