"""Public sets that papers measure CLIPs with: where each comes from, how its files lie, what it should count.

None is shipped or fetched here: each has terms of its own. A folder whose dataset.json bears one of these names is
checked against the stated rows (another number is a warning beside the figures), and where a file is missing the
message says what to put there. Rows are those of the sets' own papers; where none is given, no count was found in a
source to be cited.

Sources: MedMNIST v2 (Yang et al. 2023, Sci. Data 10:41, table 2; its classes are those of NCT-CRC-HE's CRC-VAL-HE-7K,
Kather et al. 2018, of OCT2017 and of the chest radiographs of Kermany et al. 2018); PatchCamelyon (Veeling et al. 2018,
arXiv 1806.03962); LC25000 (Borkowski et al. 2019, arXiv 1912.12142); VQA-RAD (Lau et al. 2018,
doi:10.1038/sdata.2018.251); the list of 26 rows is benchmark_manifest.csv of Yale-BIDS-Chen-Lab/medpmc-clip-eval
(commit 2e7b5d2); BiomedCLIP: Zhang et al. 2023, arXiv 2303.00915; UniMed-CLIP: Khattak et al. 2024, arXiv 2412.10372,
sets and classes from clipeval/dataset_catalog.json and constants.py of mbzuai-oryx/UniMed-CLIP (commit 6f09177).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Known:
    """One public set."""

    specialty: str
    """Of medicine, as the list of medpmc-clip-eval groups it: the macro mean over specialties uses it."""
    source: str
    layout: str
    lists: tuple[str, ...]
    """Papers whose list it is on."""
    rows: dict[str, int] = field(default_factory=dict)
    put: str = ""
    each: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Rows of the classes of a split, in any order: their names are the user's own."""
    classes: int = 0
    """How many its papers tell apart; 0: not known here."""
    prompts: str = ""
    """Where published prompts for its classes stand."""

    @property
    def fetch(self) -> str:
        """What to put where."""
        return f"get it from {self.source} and put {self.put or _PUT[self.layout]}"


_PUT = {
    "medmnist": "its .npz beside dataset.json (layout: medmnist)",
    "h5": "test.h5 with the arrays x and y beside dataset.json (layout: h5)",
    "image_folder": "the images into test/CLASS/ (layout: image_folder)",
    "csv": "the images and a test.csv with columns image and label (layout: csv)",
    "coco": "test.json and the images in test/ (layout: coco, task: multilabel)",
    "parquet": "test.parquet with columns image and label beside dataset.json",
    "options": "test.parquet with columns image, options and answer (task: options)",
}
_MEDPMC, _PAPER, _UNIMED = "medpmc-clip-eval", "BiomedCLIP", "UniMed-CLIP"
_UNIMED_PROMPTS = "constants.py of https://github.com/mbzuai-oryx/UniMed-CLIP (CC BY-NC 4.0)"
_UNIMED_SETS = "https://github.com/mbzuai-oryx/UniMed-CLIP (docs/EVALUATION_DATA.md)"
_MEDMNIST = "https://medmnist.com"
_MEDPMC_PROMPTS = "datasets.py of https://github.com/Yale-BIDS-Chen-Lab/medpmc-clip-eval"
_BOTH_PROMPTS = f"{_UNIMED_PROMPTS}; {_MEDPMC_PROMPTS}"
_MICROBENCH = "https://huggingface.co/datasets/jnirschl/uBench"


def _mnist(
    specialty: str,
    classes: int,
    train: int,
    validation: int,
    test: int,
    *lists: str,
    each: tuple[int, ...] = (),
) -> Known:
    """`each`: of test."""
    rows = {"train": train, "validation": validation, "test": test}
    prompts = _MEDPMC_PROMPTS if lists else ""
    known = {"test": each} if each else {}
    return Known(specialty, _MEDMNIST, "medmnist", lists, rows, each=known, classes=classes, prompts=prompts)


def _unimed(specialty: str, classes: int, layout: str = "csv") -> Known:
    return Known(specialty, _UNIMED_SETS, layout, (_UNIMED,), classes=classes, prompts=_UNIMED_PROMPTS)


def _micro(specialty: str) -> Known:
    prompts = "the options of each question are its prompts"
    return Known(specialty, _MICROBENCH, "options", (_MEDPMC,), prompts=prompts)


KNOWN: dict[str, Known] = {
    "PathMNIST": _mnist(
        "pathology", 9, 89_996, 10_004, 7_180, each=(1_338, 847, 339, 634, 1_035, 592, 741, 421, 1_233)
    ),
    "DermaMNIST": _mnist("dermatoscopy", 7, 7_007, 1_003, 2_005),
    "OCTMNIST": _mnist("retinal OCT", 4, 97_477, 10_832, 1_000, each=(250, 250, 250, 250)),
    "PneumoniaMNIST": _mnist("chest x-ray", 2, 4_708, 524, 624, each=(234, 390)),
    "RetinaMNIST": _mnist("color fundus", 5, 1_080, 120, 400),
    "BloodMNIST": _mnist("cytopathology", 8, 11_959, 1_712, 3_421),
    "BreastMNIST": _mnist("breast ultrasound", 2, 546, 78, 156, _MEDPMC),
    "ChestMNIST": _mnist("chest x-ray", 14, 78_468, 11_219, 22_433, _MEDPMC),
    "PCAM": Known(
        "neoplastic",
        "https://github.com/basveeling/pcam",
        "h5",
        (_PAPER, _MEDPMC, _UNIMED),
        {"train": 262_144, "validation": 32_768, "test": 32_768},
        classes=2,
        prompts=_BOTH_PROMPTS,
    ),
    "LC25000_Lung": Known(
        "neoplastic",
        "https://github.com/tampapath/lung_colon_image_set",
        "image_folder",
        (_PAPER, _MEDPMC, _UNIMED),
        classes=3,
        prompts=_BOTH_PROMPTS,
        each={"test": (5_000, 5_000, 5_000)},
    ),
    "LC25000_Colon": Known(
        "neoplastic",
        "https://github.com/tampapath/lung_colon_image_set",
        "image_folder",
        (_PAPER, _MEDPMC, _UNIMED),
        classes=2,
        prompts=_BOTH_PROMPTS,
        each={"test": (5_000, 5_000)},
    ),
    "TCGA-TIL": Known(
        "neoplastic",
        "https://www.cancerimagingarchive.net (TIL maps, Saltz et al. 2018)",
        "image_folder",
        (_PAPER,),
    ),
    "RSNA_Pneumonia": Known(
        "chest x-ray",
        "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
        "csv",
        (_PAPER, _MEDPMC, _UNIMED),
        classes=2,
        prompts=_BOTH_PROMPTS,
        put="the images and a test.csv of image, label and group (the patient) made from stage_2_train_labels.csv",
    ),
    "DAD": Known(
        "surgery", "the Dresden Surgical Anatomy Dataset", "coco", (_MEDPMC,), classes=10, prompts=_MEDPMC_PROMPTS
    ),
    "DeepDRiD": Known(
        "color fundus",
        "the DeepDRiD challenge of ISBI 2020",
        "csv",
        (_MEDPMC,),
        classes=5,
        prompts=_MEDPMC_PROMPTS,
    ),
    "HAM10000": Known(
        "dermatoscopy",
        "ISIC 2018, task 3 (test images and ground truth)",
        "csv",
        (_MEDPMC,),
        classes=7,
        prompts=_MEDPMC_PROMPTS,
    ),
    "acevedo_et_al_2020": _micro("cytopathology"),
    "burgess_et_al_2024_contour": _micro("morphological profiling"),
    "burgess_et_al_2024_eccentricity": _micro("morphological profiling"),
    "burgess_et_al_2024_texture": _micro("morphological profiling"),
    "empiar_sbfsem": _micro("structure identification"),
    "eulenberg_et_al_2017_brightfield": _micro("cell cycle analysis"),
    "eulenberg_et_al_2017_darkfield": _micro("cell cycle analysis"),
    "eulenberg_et_al_2017_epifluorescence": _micro("cell cycle analysis"),
    "hussain_et_al_2019": _micro("cytopathology"),
    "icpr2020_pollen": _micro("structure identification"),
    "jung_et_al_2022": _micro("cytopathology"),
    "kather_et_al_2016": _micro("neoplastic"),
    "nirschl_et_al_2018": _micro("non-neoplastic"),
    "nirschl_unpub_fluorescence": _micro("structure identification"),
    "tang_et_al_2019": _micro("non-neoplastic"),
    "wong_et_al_2022": _micro("non-neoplastic"),
    "wu_et_al_2023": _micro("non-neoplastic"),
    "acl_mri": _unimed("knee MRI", 2),
    "meniscal_mri": _unimed("knee MRI", 2),
    "breast_us": _unimed("breast ultrasound", 2),
    "thyroid_us": _unimed("thyroid ultrasound", 2),
    "chexpert-5x200": _unimed("chest x-ray", 5),
    "radimagenet": _unimed("radiology", 165),
    "CT_axial": _unimed("CT", 11),
    "CT_coronal": _unimed("CT", 11),
    "CT_sagittal": _unimed("CT", 11),
    "dr_regular": _unimed("color fundus", 5),
    "refuge_retina": _unimed("color fundus", 2),
    "five_retina": _unimed("color fundus", 4),
    "odir_retina": _unimed("color fundus", 3),
    "NCK_CRC": _unimed("neoplastic", 8, "image_folder"),
    "BACH": _unimed("neoplastic", 4),
    "SICAPv2": _unimed("neoplastic", 4),
    "Osteo": _unimed("neoplastic", 3),
    "skin_cancer": _unimed("dermatopathology", 16),
    "skin_tumor": _unimed("dermatopathology", 4),
}


def told_of(name: str) -> str:
    """What is known of a set, for somebody who wants to measure on it."""
    known = KNOWN[name]
    rows = [f"{split} {count:,}" for split, count in known.rows.items()]
    facts = [f"{known.classes} classes"] * (known.classes > 0) + rows
    lists = f", on the list of {', '.join(known.lists)}" if known.lists else ""
    lines = [f"{name}: {known.specialty}{lists}{'; ' if facts else ''}{', '.join(facts)}", known.fetch]
    return "\n    ".join([*lines, f"prompts: {known.prompts}"] if known.prompts else lines)
