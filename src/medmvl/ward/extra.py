"""Check that the packages of the extra `pacs` are installed; importing this module is the check."""

from medmvl.errors import require

for _package in ("highdicom", "pynetdicom", "dicomweb_client", "reportlab"):
    require(_package, "pacs")
