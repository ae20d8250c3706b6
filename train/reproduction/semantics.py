"""Similarity of classes in meaning: CIFAR-100's superclasses, and WordNet through nltk."""

import itertools

import numpy as np

# Krizhevsky, 2009, "Learning multiple layers of features from tiny images", in TFDS's order and spelling.
SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
# For classes whose first noun in WordNet 3.0 is not what CIFAR-100 shows, such as the fur of a beaver.
WORDNET_SYNSETS = {
    "aquarium_fish": "goldfish.n.01",
    "beaver": "beaver.n.07",
    "castle": "castle.n.02",
    "cloud": "cloud.n.02",
    "dolphin": "dolphin.n.02",
    "flatfish": "flatfish.n.02",
    "forest": "forest.n.02",
    "girl": "female_child.n.01",
    "lamp": "lamp.n.02",
    "leopard": "leopard.n.02",
    "lobster": "lobster.n.02",
    "maple_tree": "maple.n.02",
    "mushroom": "mushroom.n.05",
    "otter": "otter.n.02",
    "plate": "plate.n.04",
    "raccoon": "raccoon.n.02",
    "ray": "ray.n.07",
    "seal": "seal.n.09",
    "shrew": "shrew.n.02",
    "skunk": "skunk.n.04",
    "sweet_pepper": "sweet_pepper.n.02",
    "table": "table.n.02",
    "television": "television_receiver.n.01",
    "tiger": "tiger.n.02",
    "trout": "trout.n.02",
    "turtle": "turtle.n.02",
    "whale": "whale.n.02",
}


def superclasses(classes):
    """Return the superclass of each class of CIFAR-100, numbered in the order of `SUPERCLASSES`.

    Args:
        classes: Names, strings, such as `ImageArrays.classes`.

    Returns:
        Integers, shape `(classes,)`.

    Raises:
        ValueError: If a class is not one of CIFAR-100's.
    """
    numbers = {name: i for i, names in enumerate(SUPERCLASSES.values()) for name in names.split()}
    if unknown := [name for name in classes if name not in numbers]:
        raise ValueError(
            f"`classes` must be names of CIFAR-100. Received: {unknown[0]!r}; {len(unknown)} of {len(classes)} are not."
        )
    return np.array([numbers[name] for name in classes])


def superclass_similarity(classes):
    """Return 1 for two classes of the same superclass of CIFAR-100, else 0: float64, shape `(classes, classes)`."""
    groups = superclasses(classes)
    return (groups[:, None] == groups).astype("float64")


def wordnet_similarity(classes, measure="wup", synset_names=WORDNET_SYNSETS):
    r"""Return the similarity of the classes' nouns in WordNet.

    $$\mathrm{WUP} = \frac{2 \, \mathrm{depth}(c)}{\mathrm{depth}(a) + \mathrm{depth}(b)}, \qquad
      \mathrm{LCH} = -\log \frac{d(a, b) + 1}{2 D}$$

    $c$ is the deepest common hypernym of $a$ and $b$, $d$ the length of the shortest path between them, $D$
    the depth of all nouns. Wu & Palmer, ACL 1994; Leacock & Chodorow, 1998.

    Args:
        classes: Names, strings; words joined by `_`.
        measure: `"wup"`, in (0, 1], or `"lch"`, in nats.
        synset_names: Dict of a class to its synset, such as `"beaver.n.07"`; the first noun of the name by default.

    Returns:
        float64, symmetric, shape `(classes, classes)`.

    Raises:
        ImportError: If nltk is not installed.
        LookupError: If nltk's copy of WordNet is not installed.
        OSError: If files of it are missing.
        ValueError: If the measure is unknown, or WordNet has no such noun.
    """
    if measure not in ("wup", "lch"):
        raise ValueError(f"`measure` must be 'wup' or 'lch'. Received: measure={measure!r}.")
    wordnet = _wordnet()
    synsets = []
    for name in classes:
        matches = [wordnet.synset(synset_names[name])] if name in synset_names else wordnet.synsets(name, "n")
        if not matches:
            raise ValueError(
                f"WordNet has no noun {name!r}. Pass its synset: synset_names={{{name!r}: 'goldfish.n.01'}}."
            )
        synsets.append(matches[0])
    similarity = np.empty((len(synsets), len(synsets)))
    for i, j in itertools.combinations_with_replacement(range(len(synsets)), 2):
        similarity[i, j] = similarity[j, i] = getattr(synsets[i], f"{measure}_similarity")(synsets[j])
    return similarity


def _wordnet():
    try:
        from nltk.corpus import wordnet
    except ImportError as error:
        raise ImportError("WordNet similarities need nltk: pip install nltk.") from error
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise LookupError("nltk has no copy of WordNet: python -m nltk.downloader wordnet.") from error
    return wordnet
