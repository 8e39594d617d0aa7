"""Hospital integration: DICOM studies in, results that a PACS can show out.

`process_study` does the work; `medmvl study` (folders), `medmvl dicomweb` and `medmvl node` (a DICOM listener) bring it
studies and take its results away. Needs the extra `pacs`.
"""

from medmvl.ward import extra as _extra  # noqa: F401 - says which extra is missing, before anything needs it
from medmvl.ward import privacy as _privacy  # noqa: F401 - silences the DICOM libraries
from medmvl.ward.process import StudyResult, process_study
from medmvl.ward.protocol import Protocol
from medmvl.ward.protocol_file import load_protocol

__all__ = ["Protocol", "StudyResult", "load_protocol", "process_study"]
