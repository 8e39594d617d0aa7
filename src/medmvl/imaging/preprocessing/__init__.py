"""Preparation of volumes and images for models: geometries, resampling, windows, augmentation."""
