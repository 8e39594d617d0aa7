"""What MedMNIST's files do not say themselves: class names in the order of their ids (package medmnist 3.0.2)."""

from __future__ import annotations

from dataclasses import dataclass

_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
_ORGANS_3D = (
    "liver",
    "kidney-right",
    "kidney-left",
    "femur-right",
    "femur-left",
    "bladder",
    "heart",
    "lung-right",
    "lung-left",
    "spleen",
    "pancreas",
)


@dataclass(frozen=True)
class Subset:
    """One MedMNIST subset: what it shows and its classes in id order."""

    picture: str
    classes: tuple[str, ...]
    multi_label: bool = False
    volume: bool = False
    licence: str = "CC BY 4.0"


SUBSETS: dict[str, Subset] = {
    "pathmnist": Subset(
        "colon pathology image",
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
    ),
    "chestmnist": Subset(
        "chest x-ray",
        (
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural",
            "hernia",
        ),
        multi_label=True,
    ),
    "dermamnist": Subset(
        "dermatoscopic image",
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        licence="CC BY-NC 4.0",
    ),
    "octmnist": Subset(
        "retinal OCT image", ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal")
    ),
    "pneumoniamnist": Subset("chest x-ray", ("normal", "pneumonia")),
    "retinamnist": Subset("fundus image", ("0", "1", "2", "3", "4")),
    "breastmnist": Subset("breast ultrasound image", ("malignant", "normal, benign")),
    "bloodmnist": Subset(
        "blood cell microscope image",
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
    ),
    "tissuemnist": Subset(
        "kidney cortex microscope image",
        (
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
    ),
    "organamnist": Subset("axial abdominal CT slice", _ORGANS),
    "organcmnist": Subset("coronal abdominal CT slice", _ORGANS),
    "organsmnist": Subset("sagittal abdominal CT slice", _ORGANS),
    "organmnist3d": Subset("abdominal CT volume", _ORGANS_3D, volume=True),
    "nodulemnist3d": Subset("chest CT volume of a nodule", ("benign", "malignant"), volume=True),
    "adrenalmnist3d": Subset("volume of an adrenal gland", ("normal", "hyperplasia"), volume=True),
    "fracturemnist3d": Subset(
        "chest CT volume of a rib",
        ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
        volume=True,
    ),
    "vesselmnist3d": Subset("volume of a brain vessel", ("vessel", "aneurysm"), volume=True),
    "synapsemnist3d": Subset("electron microscope volume", ("inhibitory synapse", "excitatory synapse"), volume=True),
}


def spoken(name: str) -> str:
    """Return a class name as Uni-Med writes it: "kidney-left" becomes "left kidney"; lower case."""
    organ, _, side = name.rpartition("-")
    return f"{side} {organ}" if side in ("left", "right") and organ else name.lower()
