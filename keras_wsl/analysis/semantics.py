"""Semantic similarity of classes: CIFAR-100's superclasses, and WordNet through nltk."""

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
# Classes for which the first noun of that name in WordNet 3.0 is not what CIFAR-100 shows, such as a beaver's fur.
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
    """Return the index of each class's superclass in `SUPERCLASSES`, for classes of CIFAR-100.

    Args:
        classes: Strings, the names of the classes, such as `ImageArrays.classes`.

    Returns:
        Integers, shape `(classes,)`.

    Raises:
        ValueError: If a class is not one of CIFAR-100's.
    """
    index = {name: i for i, names in enumerate(SUPERCLASSES.values()) for name in names.split()}
    if unknown := [name for name in classes if name not in index]:
        raise ValueError(
            f"`classes` must be of CIFAR-100. Received: {unknown[0]!r}; {len(unknown)} of {len(classes)} are not."
        )
    return np.array([index[name] for name in classes])


def superclass_similarity(classes):
    """Return 1 for two classes of the same superclass of CIFAR-100, else 0: float64, shape `(classes, classes)`."""
    groups = superclasses(classes)
    return (groups[:, None] == groups).astype("float64")


def wordnet_similarity(classes, measure="wup", synsets=WORDNET_SYNSETS):
    r"""Compute the similarity of the classes' nouns in WordNet.

    $$\mathrm{WUP} = \frac{2 \, \mathrm{depth}(c)}{\mathrm{depth}(a) + \mathrm{depth}(b)}, \qquad
      \mathrm{LCH} = -\log \frac{d(a, b) + 1}{2 D}$$

    $c$ is the deepest noun of which $a$ and $b$ are both kinds, $d$ the length of the shortest path between them, and
    $D$ the depth of the taxonomy of nouns. Wu & Palmer, ACL 1994; Leacock & Chodorow, 1998.

    Args:
        classes: Strings, the names of the classes, with words joined by `_`.
        measure: `"wup"`, in (0, 1], or `"lch"`, in nats.
        synsets: Dict of a class to its synset, such as `"beaver.n.07"`. For other classes, the first noun of that name
        is
            used.

    Returns:
        float64, symmetric, shape `(classes, classes)`.

    Raises:
        ImportError: If nltk is not installed.
        LookupError: If nltk's copy of WordNet is not installed.
        OSError: If it lacks files.
        ValueError: If the measure is unknown, or WordNet has no such noun.
    """
    if measure not in ("wup", "lch"):
        raise ValueError(f"`measure` must be 'wup' or 'lch'. Received: measure={measure!r}.")
    wordnet = _wordnet()
    nouns = []
    for name in classes:
        candidates = [wordnet.synset(synsets[name])] if name in synsets else wordnet.synsets(name, "n")
        if not candidates:
            raise ValueError(
                f"`classes` must be nouns in WordNet. Received: {name!r}. Pass its synset, such as "
                f"synsets={{{name!r}: 'goldfish.n.01'}}."
            )
        nouns.append(candidates[0])
    similarity = np.empty((len(nouns), len(nouns)))
    for i, j in itertools.combinations_with_replacement(range(len(nouns)), 2):
        similarity[i, j] = similarity[j, i] = getattr(nouns[i], f"{measure}_similarity")(nouns[j])
    return similarity


def _wordnet():
    try:
        from nltk.corpus import wordnet
    except ImportError as error:
        raise ImportError("Similarities in WordNet require nltk. Run `pip install nltk`.") from error
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise LookupError("nltk has no WordNet here. Run `python -m nltk.downloader wordnet`.") from error
    return wordnet
