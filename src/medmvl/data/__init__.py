"""Records, files of records, data sets and converters; independent of models."""
