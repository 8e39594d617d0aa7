"""Recipes become trained models: stages as data, run by a thin `transformers.Trainer`."""
