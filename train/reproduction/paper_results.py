"""The numbers of the papers' tables: top-1 accuracies in percent, from Zhou et al., ICLR 2021, arXiv:2102.00650."""

from reproduction.variants import TO_16_2, TO_40_1, TO_RESNET8X4, TO_RESNET20

# Table 1 and figure 2, KD of WRN-40-2 to WRN-16-2: (temperature, smoothed teacher) to samples and accuracy.
EXAMPLES = 50_000
COUNTS = {
    (2, False): (15379, 74.79),
    (2, True): (25235, 74.62),
    (4, False): (17709, 74.92),
    (4, True): (24775, 74.59),
    (6, False): (17408, 75.10),
    (6, True): (24538, 74.46),
}

# Table 3: a column per pair, a row per method. All rows but WSL's are quoted from the CRD paper.
PAIRS = (
    TO_40_1,
    TO_RESNET20,
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    TO_RESNET8X4,
    ("resnet32x4", "shufflenet_v1"),
    ("resnet32x4", "shufflenet_v2"),
    ("wrn_40_2", "shufflenet_v1"),
)
METHODS = {
    "none": (71.98, 69.06, 69.06, 71.14, 72.50, 70.5, 71.82, 70.5),
    "fitnet": (72.24, 69.21, 68.99, 71.06, 73.50, 73.59, 73.54, 73.73),
    "at": (72.77, 70.55, 70.22, 72.31, 73.44, 71.73, 72.73, 73.32),
    "sp": (72.43, 69.67, 70.04, 72.69, 72.94, 73.48, 74.56, 74.52),
    "cc": (72.21, 69.63, 69.48, 71.48, 72.97, 71.14, 71.29, 71.38),
    "vid": (73.30, 70.38, 70.16, 72.61, 73.09, 73.38, 73.40, 73.61),
    "rkd": (72.22, 69.61, 69.25, 71.82, 71.90, 72.28, 73.21, 72.21),
    "pkt": (73.45, 70.34, 70.25, 72.61, 73.64, 74.10, 74.69, 73.89),
    "ab": (72.38, 69.47, 69.53, 70.98, 73.17, 73.55, 74.31, 73.34),
    "ft": (71.59, 69.84, 70.22, 72.37, 72.86, 71.75, 72.50, 72.03),
    "fsp": (None, 69.95, 70.11, 71.89, 72.62, None, None, None),
    "nst": (72.24, 69.60, 69.53, 71.96, 73.30, 74.12, 74.68, 74.89),
    "kd": (73.54, 70.66, 70.67, 73.08, 73.33, 74.07, 74.45, 74.83),
    "crd": (74.14, 71.16, 71.46, 73.48, 75.51, 75.11, 75.65, 76.05),
    "wsl": (74.48, 72.15, 72.19, 74.12, 76.05, 75.46, 75.93, 76.21),
}

# Table 4: a column per pair.
IMAGENET_METHODS = {
    "none": (69.75, 68.87),
    "kd": (70.67, 70.49),
    "at": (71.03, 70.18),
    "nst": (70.29, None),
    "fsp": (70.58, None),
    "ft": (None, 69.88),
    "ab": (None, 68.89),
    "rkd": (70.40, 68.50),
    "crd": (71.17, 69.07),
    "overhaul": (71.03, 71.33),
    "wsl": (72.04, 71.52),
}

# Table 7: the percentage of samples that is left out, to the accuracies of KD and of WSL.
EXCLUSION_RATES = {
    "regularization samples": {100: (74.59, 75.35), 75: (74.63, 75.48), 50: (74.72, 75.61), 25: (74.87, 75.72)},
    "other samples": {100: (73.86, 74.46), 75: (74.12, 74.79), 50: (74.47, 75.18), 25: (74.71, 75.53)},
}

# Table 8: (accuracy of the loss, accuracy with WSL's weights). No paper weights the losses in BEYOND.
WEIGHTED_LOSSES = {
    TO_16_2: {"rkd": (74.12, 74.65)},
    TO_40_1: {"rkd": (73.34, 73.89)},
    TO_RESNET20: {"rkd": (70.25, 70.73)},
}
