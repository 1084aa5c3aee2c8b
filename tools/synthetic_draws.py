"""The draws behind the synthetic catalogue: categories, the order of products, which picture each shows, the drawings.

Synopsis:

    sizes = draw_sizes(1_250, categories=100, seed=0)
    codes = order_products(sizes, test=250, seed=0)   # int64 [1_250]: 2 * category + 1 if the product is a test product
    repeats = Repeats(categories=100, drawings=64, seed=0)
    keys = repeats.draw(codes // 2, is_repeat=..., is_train=codes % 2 == 0)   # equal keys are equal pictures
"""

from __future__ import annotations

import colorsys
import itertools
import math

import numpy as np

from tools import kaggle
from tools.kaggle import SIDE, Image, ImageChops, ImageDraw

# Kaggle's category sizes: rank (the largest is 1) and train products. From rank 41 on they are known in pictures, of
# which a product has 1.75; the smallest has 12. Between these, log size is linear in log rank: that sums to 0.992 of
# Kaggle's products.
SIZES = (
    (1, 79_640), (2, 71_116), (3, 69_784), (5, 65_435), (41, 34_286), (121, 11_429), (234, 5_714), (527, 2_231),
    (1_317, 735), (2_635, 207), (3_952, 74), (4_822, 28.6), (5_226, 11.4), (5_270, 9),
)  # fmt: skip
# Every fifth product of a category or one less is a test product, so that of three at least two are train products.
SMALLEST_CATEGORY = 3

# Products arrive in batches of one category (a merchant adds a shelf of products), which overlap: that many products in
# a batch, scattered (standard deviation) over that many ids' places, except for a share that stands anywhere. Kaggle's
# first 82 products are of 36 categories, 36 of them of one.
BATCH = 24
BATCH_SCATTER = 40
STRAY_SHARE = 0.2
BATCHES_AT_ONCE = 20_000

# A repeat shows one of so many latest pictures of its category, or, in so large a share, of all categories: Kaggle has
# 1.5 % of the distinct pictures in several categories.
RECENT = 32
ELSEWHERE_SHARE = 0.02

DRAWINGS_A_CATEGORY = 8

# Words of which names are made; Kaggle's names are French, in capitals.
LEVEL1 = (
    'ANIMALERIE', 'ARTICLES POUR FUMEURS', 'ART DE LA TABLE - ARTICLES CULINAIRES', 'AUTO - MOTO', 'BAGAGERIE',
    'BATEAU MOTEUR - VOILIER', 'BIJOUX - LUNETTES - MONTRES', 'BRICOLAGE - OUTILLAGE - QUINCAILLERIE', 'CHAUSSURES',
    'DECO - LINGE - LUMINAIRE', 'ELECTROMENAGER', 'HYGIENE - BEAUTE - PARFUM', 'INFORMATIQUE', 'JARDIN - PISCINE',
    'JEUX - JOUETS', 'LIBRAIRIE', 'LITERIE', 'MEUBLE', 'MUSIQUE', 'PAPETERIE', 'PUERICULTURE', 'SPORT',
    'TELEPHONIE - GPS', 'VETEMENTS',
)  # fmt: skip
LEVEL2 = ('ACCESSOIRES', 'COLLECTION', 'CONFORT', 'ENTRETIEN', 'EQUIPEMENT', 'LOISIRS', 'PIECES', 'PRODUITS')
THINGS = (
    'ADAPTATEUR', 'BALAI', 'BOITE', 'BRACELET', 'CADRE', 'CHARGEUR', 'COFFRET', 'COUSSIN', 'ETUI', 'FILTRE', 'GANTS',
    'HOUSSE', 'KIT', 'LAMPE', 'MASQUE', 'PANIER', 'PLATEAU', 'POIGNEE', 'PORTE-CLES', 'RIDEAU', 'SAC', 'SUPPORT',
    'TAPIS', 'VALISE',
)  # fmt: skip
KINDS = (
    'ADHESIF', 'AUTOMATIQUE', "D'ANGLE", "D'EXTERIEUR", 'DE CUISINE', 'DE POCHE', 'DE SECURITE', 'DE SPORT',
    'DE VOYAGE', 'EN BOIS', 'EN CUIR', 'ENFANT', 'LUMINEUX', 'MURAL', 'PLIABLE', 'POUR BEBE', 'PROFESSIONNEL', 'SOUPLE',
)  # fmt: skip
ENDINGS = (
    '', ' - ACCESSOIRE', ' - LOT', ' A ROULETTES', ' BLANC', ' COMPACT', ' ELECTRIQUE', ' GRAND FORMAT', ' NOIR',
    ' RECHARGEABLE', ' ROUGE', ' SANS FIL', ' UNIVERSEL', ' XL',
)  # fmt: skip
# Of Kaggle's 5,270 names of level 3, three have a comma and so need quotes, 19 have accents and 7 repeat another.
QUOTED_EVERY, ACCENTED_EVERY, REPEATED_EVERY = 5_270 // 3, 5_270 // 19, 5_270 // 7


def draw_sizes(products: int, *, categories: int, seed: int) -> np.ndarray:
    """How many products each category has, in no order, with Kaggle's proportions: int64 [categories].

    Args:
        products: of all categories, SMALLEST_CATEGORY or more for each.
        categories: how many there are.
        seed: decides the order.
    """
    ranks = (np.arange(categories) + 0.5) * SIZES[-1][0] / categories + 0.5
    sizes = np.exp(np.interp(np.log(ranks), *np.log(SIZES).T))
    smallest = min(SMALLEST_CATEGORY, products // categories)
    above = np.maximum(sizes * (products / sizes.sum()) - smallest, 1e-9)
    ends = np.rint(np.cumsum(above) * ((products - smallest * categories) / above.sum())).astype(np.int64)
    return kaggle.generator(seed, 'category sizes').permutation(smallest + np.diff(ends, prepend=0))


def draw_category_ids(categories: int, *, seed: int) -> np.ndarray:
    """Ascending ids with irregular gaps, as wide as Kaggle's: int64 [categories]."""
    gap = len(kaggle.CATEGORY_IDS) / SIZES[-1][0]
    gaps = kaggle.generator(seed, 'category ids').geometric(1 / gap, categories)
    return kaggle.CATEGORY_IDS[0] + np.cumsum(gaps) - gaps[0]


def draw_names(categories: int, *, seed: int) -> list[tuple[str, str, str]]:
    """The names of levels 1, 2 and 3 of each category; a few of level 3 repeat, a few have a comma or an accent."""
    draw = kaggle.generator(seed, 'names')
    words = list(itertools.product(THINGS, KINDS, ENDINGS))
    chosen = np.resize(draw.permutation(len(words)), categories)
    names: list[tuple[str, str, str]] = []
    levels = zip(draw.choice(LEVEL1, categories).tolist(), draw.choice(LEVEL2, categories).tolist(), strict=True)
    for number, (level1, level2) in enumerate(levels):
        thing, kind, ending = words[chosen[number]]
        level3 = f'{thing} {kind}{ending}'
        if number % QUOTED_EVERY == 1:
            level3 = f'{thing} {kind}, {ending.strip(" -") or "DIVERS"}'
        elif number % ACCENTED_EVERY == 2:
            level3 = f'{level3} - MODÈLE D’ÉTÉ'
        elif number % REPEATED_EVERY == 3:
            level3 = names[number - 3][2]
        names.append((level1, f'{level2} {level1.split(" - ")[0]}', level3))
    return names


def order_products(sizes: np.ndarray, *, test: int, seed: int) -> np.ndarray:
    """The order of all products by id: neighbours are often of one category, and train and test mix.

    Eight bytes a product are all that is held: the place in the order, the category and the split share one number.

    Args:
        sizes: products of each category, int64 [categories].
        test: how many of all of them are test products; every category gives its share.
        seed: decides the order.

    Returns:
        2 * category + 1 if it is a test product, int64 [products].
    """
    draw = kaggle.generator(seed, 'order')
    ends = np.cumsum(sizes)
    total = int(ends[-1])
    bits = int(2 * len(sizes) - 1).bit_length()
    keys = np.empty(total, np.int64)
    for start in range(0, total, BATCH * BATCHES_AT_ONCE):
        number = np.arange(start, min(start + BATCH * BATCHES_AT_ONCE, total))
        is_test = (number + 1) * test // total > number * test // total
        code = 2 * np.searchsorted(ends, number, side='right') + is_test
        place = np.repeat(draw.random(-(-len(number) // BATCH)), BATCH)[: len(number)]
        place += draw.normal(scale=BATCH_SCATTER / total, size=len(number))
        place = np.where(draw.random(len(number)) < STRAY_SHARE, draw.random(len(number)), place % 1)
        keys[start : start + len(number)] = ((place * 2 ** (62 - bits)).astype(np.int64) << bits) + code
    keys.sort()
    keys &= 2**bits - 1
    return keys


class Repeats:
    """Which picture each place shows: a new one, or one shown before among the train products.

    A picture is a key: the number of a drawing plus `drawings` times a serial number that no other picture has, so that
    equal keys are equal bytes and different keys different bytes. Of each category the RECENT latest keys are held.
    """

    def __init__(self, *, categories: int, drawings: int, seed: int) -> None:
        self._draw = kaggle.generator(seed, 'pictures')
        self._drawings = drawings
        self._serial = 0
        self._shown = np.zeros(categories, np.int64)  # new train pictures of each category so far
        self._ring = np.zeros((categories, RECENT), np.int64)  # number n stands at n % RECENT
        self._latest = np.zeros(0, np.int64)  # of all categories

    def draw(self, category: np.ndarray, *, is_repeat: np.ndarray, is_train: np.ndarray) -> np.ndarray:
        """The keys of the next places.

        Args:
            category: of each place, int64 [n].
            is_repeat: whether it shows an earlier train picture, bool [n]; not heeded before there is one.
            is_train: whether it is a train product's, bool [n].

        Returns:
            int64 [n].
        """
        is_new = ~is_repeat
        if not len(self._latest):  # all up to the first train picture must be new
            is_new[: np.argmax(is_train) + 1 if is_train.any() else None] = True
        keys = np.empty(len(category), np.int64)
        keys[is_new] = self._new_keys(category[is_new])

        # A source is a picture that may be repeated. Sorted by category, a place's sources before it in its category
        # are those of earlier calls (`shown`) and those of this call (`before`).
        is_source = is_new & is_train
        order = np.argsort(category, kind='stable')
        sources = order[is_source[order]]
        passed = np.cumsum(is_source[order]) - is_source[order]
        first = passed[np.searchsorted(category[order], category[order])]  # sources of lower categories
        before, lower = np.empty_like(keys), np.empty_like(keys)
        before[order], lower[order] = passed - first, first
        shown = self._shown[category]
        here = np.flatnonzero(~is_new)
        back = 1 + (self._draw.random(len(here)) * np.minimum(shown + before, RECENT)[here]).astype(np.int64)
        number = (shown + before)[here] - back
        in_ring = number < shown[here]
        in_call = here[~in_ring]
        keys[here[in_ring]] = self._ring[category[here], number % RECENT][in_ring]
        keys[in_call] = keys[sources[lower[in_call] + (number - shown[here])[~in_ring]]]

        stray = (shown + before)[here] == 0  # the category's first picture can only be another category's
        stray |= self._draw.random(len(here)) < ELSEWHERE_SHARE
        latest = np.concatenate([self._latest, keys[is_source]])
        until = len(self._latest) + (np.cumsum(is_source) - is_source)[here[stray]]
        back = 1 + (self._draw.random(len(until)) * np.minimum(until, RECENT * RECENT)).astype(np.int64)
        keys[here[stray]] = latest[until - back]

        self._ring[category[sources], (shown + before)[sources] % RECENT] = keys[sources]
        self._shown += np.bincount(category[sources], minlength=len(self._shown))
        self._latest = latest[-RECENT * RECENT :]
        return keys

    def _new_keys(self, category: np.ndarray) -> np.ndarray:
        """Keys never given before; a category has a few drawings, so that there is something to learn."""
        serial = self._serial + np.arange(len(category))
        self._serial += len(category)
        choice = self._draw.integers(DRAWINGS_A_CATEGORY, size=len(category))
        return serial * self._drawings + (category * DRAWINGS_A_CATEGORY + choice) % self._drawings


def draw_pictures(number: int, *, blank: bool, seed: int) -> list[bytes]:
    """The drawings as JPEG: things on white ground, about 4,700 bytes each, or of one colour and 500 bytes each."""
    draw = kaggle.generator(seed, 'drawings')
    if blank:
        colours = draw.integers(256, size=(number, 3)).tolist()
        return [kaggle.encode(Image.new('RGB', (SIDE, SIDE), tuple(colour)), optimize=True) for colour in colours]
    return [kaggle.encode(_thing(index // DRAWINGS_A_CATEGORY, draw)) for index in range(number)]


def _thing(kind: int, draw: np.random.Generator) -> Image.Image:
    """A polygon of a colour that belongs to the kind, with a texture; what varies within a kind is place and size."""
    hue = kind * 0.618 % 1  # the golden ratio: hues of neighbours are far apart
    colour = colorsys.hsv_to_rgb(hue, draw.uniform(0.1, 0.8), 1)
    corners = 3 + kind % 8
    # Grains across the picture, and how much darker than the colour they are: these decide the size of the file.
    grains = int(draw.integers(8, 90))
    shade = 255 - draw.random((grains, grains)) * draw.uniform(40, 255)
    texture = Image.fromarray(shade.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    plain = Image.new('RGB', (SIDE, SIDE), tuple(round(255 * part) for part in colour))
    thing = ImageChops.multiply(plain, Image.merge('RGB', [texture] * 3))
    width, height = draw.uniform(0.22, 0.6, size=2) * SIDE
    turn = draw.uniform(0, math.tau)
    angles = [turn + math.tau * corner / corners for corner in range(corners)]
    outline = [(SIDE / 2 + width * math.cos(angle), SIDE / 2 + height * math.sin(angle)) for angle in angles]
    mask = Image.new('L', (SIDE, SIDE))
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    picture = Image.new('RGB', (SIDE, SIDE), 'white')
    picture.paste(thing, mask=mask)
    return picture
