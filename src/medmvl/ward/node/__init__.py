"""The DICOM node: receive studies, process them in order, deliver results; all state is on disk."""
