"""Weights from files: Keras' .keras and .weights.h5, and the .h5 of Keras 1 and 2 that keras.applications publishes.

A layer of a file is found by its place: in an old .h5 its number among the layers with weights, in Keras 3's files its
class and its number in this class (conv2d_3). So it doesn't matter what the network that wrote it calls its layers.
"""

from __future__ import annotations

import collections
import hashlib
import io
import re
import zipfile
from dataclasses import dataclass

import h5py
import keras
import numpy as np

from pipeline import storage
from pipeline.errors import InputError, UsageError, one_line

Place = int | tuple[str, int]
# Of our classifiers' dense layers: that of the logits, and one before it.
HEAD, HEAD_DENSE = 'logits', 'head_dense'
WIDER = 'wider_conv'  # of the features that a backbone was given (wider.py)
# Of what the title adds to the logits: the dense layer, and the first layer of the branch, if it has one (title.py).
TITLE_HEAD, TITLE_BRANCH = 'title_logits', 'title_conv'


@dataclass(frozen=True)
class SavedLayer:
    """A layer of a file.

    Attributes:
        name: what it was called.
        values: its arrays, in the order of layer.get_weights().
    """

    name: str
    values: list[np.ndarray]


def fill(classifier: keras.Model, path: str, *, plain: keras.Model | None = None, parts: int = 1) -> str:
    """Gives a classifier the weights of a file: all layers by place; the last one, the dense layer, only if it fits.

    A .keras file of which not all layers fit gives those of the same name and shapes, if that is half of them or more.

    Args:
        classifier: what is filled.
        path: of the file.
        plain: the classifier's backbone with one dense layer, if it has more than that: layers that the file hasn't
            stay as they are, and a dense layer that it has for fewer features, or for one picture, is grown so that the
            network computes what the file's does.
        parts: how many pictures' features, one after the other, the classifier's first dense layer takes.

    Returns:
        What was done, for the log.

    Raises:
        InputError: the file can't be read or fits nothing; names the first layer that doesn't fit.
    """
    saved, md5 = read(path)
    by_name = {source.name: source for source in saved.values()} if path.endswith('.keras') else {}
    layers = [layer for layer in classifier.layers if layer.weights]
    names = {layer.name for layer in layers}
    if (HEAD_DENSE in names) != (HEAD_DENSE in by_name):  # the one of the logits takes something else then
        by_name.pop(HEAD, None)
    if plain is None:
        filled = _fill_by_place(classifier, saved, by_name, path=path)
    else:
        filled = _fill_more(classifier, plain, saved, by_name, path=path, parts=parts)
    return told(f'{path} (MD5 {md5})', filled=len(filled), layers=len(layers), head=HEAD in filled)


def _fill_by_place(
    classifier: keras.Model, saved: dict[Place, SavedLayer], by_name: dict[str, SavedLayer], *, path: str
) -> list[str]:
    """Fills a backbone with one dense layer; the names of the layers that were filled."""
    layers = [layer for layer in classifier.layers if layer.weights]
    sources = _by_place(saved, classifier)
    misfits = [pair for pair in zip(layers[:-1], sources, strict=False) if not _fits(*pair)]
    if misfits:
        sources = [by_name.get(layer.name) for layer in layers]
        if 2 * sum(map(_fits, layers[:-1], sources)) < len(layers) - 1:
            layer, source = misfits[0]
            there = f"'s {source.name} has {_shapes(source.values)}" if source else ' has no layer there'
            raise InputError(
                f'--weights={path}: fits only the --backbone and --width that it was made with; '
                f'{layer.name} has {_shapes(layer.weights)}, the file{there}'
            )
    return [layer.name for layer, source in zip(layers, sources, strict=True) if _fill(layer, source)]


def _fill_more(
    classifier: keras.Model,
    plain: keras.Model,
    saved: dict[Place, SavedLayer],
    by_name: dict[str, SavedLayer],
    *,
    path: str,
    parts: int,
) -> list[str]:
    """Fills a classifier with other layers beside those of its backbone; the names of the layers that were filled."""
    backbone = [layer for layer in plain.layers if layer.weights][:-1]
    layers = {layer.name: layer for layer in classifier.layers if layer.weights}
    first = HEAD_DENSE if HEAD_DENSE in layers else HEAD
    filled = []
    if not all(_fits(layer, by_name.get(layer.name)) for layer in backbone):
        filled = _fill_by_place(plain, saved, by_name, path=path)
        by_name = {HEAD: SavedLayer(HEAD, plain.layers[-1].get_weights())} if HEAD in filled else {}
        filled = [name for name in filled if name != HEAD]
    features = plain.layers[-1].kernel.shape[0]
    if WIDER in by_name and WIDER not in {layer.name for layer in backbone}:
        features += by_name[WIDER].values[-1].shape[-1]
    if TITLE_BRANCH in layers and not _fits(layers[TITLE_BRANCH], by_name.get(TITLE_BRANCH)):
        by_name.pop(TITLE_HEAD, None)  # what reads the features of something else
    grown = {first: features}
    if TITLE_HEAD in layers:  # a crop's features are the backbone's, or a branch's
        grown[TITLE_HEAD] = layers[TITLE_HEAD].kernel.shape[0] // parts if TITLE_BRANCH in layers else features
    for name, count in grown.items():
        if _grow(layers[name], by_name.get(name), features=count, parts=parts):
            filled.append(name)
    if first not in filled:
        by_name.pop(HEAD, None)  # what reads the units of a layer that is new
    return filled + [name for name, layer in layers.items() if name not in grown and _fill(layer, by_name.get(name))]


def _grow(layer: keras.Layer, source: SavedLayer | None, *, features: int, parts: int) -> bool:
    """Gives a layer without activation what computes the same from more features, or from the mean of several pictures.

    Args:
        layer: with a kernel [rows, units], then perhaps a bias.
        source: the same of a file.
        features: of a picture, in the file: so its rows tell of how many pictures, one after the other, they are.
        parts: of how many pictures those of the layer are.

    Returns:
        Whether it has; not if the file's is of something else.
    """
    if source is None:
        return False
    kernel, *others = source.values
    rows, units = layer.kernel.shape
    wide, saved_parts = rows // parts, len(kernel) // features
    if len(kernel) != saved_parts * features or saved_parts not in (1, parts) or features > wide:
        return False
    if kernel.shape[1] != units:
        return False
    grown = np.zeros([parts, wide, units], kernel.dtype)
    grown[:, :features] = kernel.reshape(saved_parts, features, units) * (saved_parts / parts)
    own = layer.get_weights()[1:]
    layer.set_weights([grown.reshape(rows, units), *(others if len(others) == len(own) else own)])
    return True


def told(source: str, *, filled: int, layers: int, head: bool) -> str:
    """The line for the log: how many layers of how many `source` filled, and whether the dense layer is one of them."""
    dense = 'the dense layer among them' if head else 'the dense layer is new'
    return f'weights: {source} filled {filled} of {layers} layers, {dense}'


def read(path: str) -> tuple[dict[Place, SavedLayer], str]:
    """The layers with weights in a file, by place, and the file's MD5. An optimizer's state is left out.

    Of a model inside another (a trainer's, or keras.Sequential([backbone, ...])) it is the one with the most layers.

    Raises:
        InputError: it can't be read, or holds no weights.
    """
    if not path.endswith(('.keras', '.h5')):
        raise UsageError(f'--weights={path}: must be imagenet, none, or a .keras, .weights.h5 or .h5 file')
    try:
        with storage.open_read(path) as file:
            content = file.read()
        hdf5 = io.BytesIO(content)
        if path.endswith('.keras'):
            with zipfile.ZipFile(hdf5) as archive:
                hdf5 = io.BytesIO(archive.read('model.weights.h5'))
        with h5py.File(hdf5) as opened:
            group = opened.get('model_weights', opened)  # Keras 1 and 2 put a whole model's weights there
            names = _strings(group, 'layer_names')
            saved = _read_old(group, names) if names else _read_new(opened)
    except InputError:
        raise
    except Exception as error:  # h5py and zipfile raise about everything where a file is damaged
        raise InputError(f"--weights={path}: can't be read as weights of Keras ({one_line(error)})") from None
    if not saved:
        raise InputError(f'--weights={path}: holds no layers with weights')
    return saved, hashlib.md5(content, usedforsecurity=False).hexdigest()


def _read_old(group: h5py.Group, names: list[str]) -> dict[Place, SavedLayer]:
    """A group for each layer; `layer_names` tells their order, each one's `weight_names` that of its arrays."""
    layers = [SavedLayer(name, _arrays(group[name], _strings(group[name], 'weight_names'))) for name in names]
    return dict(enumerate(layer for layer in layers if layer.values))


def _read_new(file: h5py.File) -> dict[Place, SavedLayer]:
    """Arrays at paths such as layers/conv2d_3/vars/0; newer files have the layer's name as an attribute of vars."""
    models: collections.defaultdict[str, dict[Place, h5py.Group]] = collections.defaultdict(dict)

    def visit(path: str, item: h5py.Group | h5py.Dataset) -> None:
        match = re.fullmatch(r'(.*?)/?([a-z][^/]*?)(?:_(\d+))?/vars', path)
        if match and isinstance(item, h5py.Group) and len(item):
            model, kind, number = match.groups()
            models[model][kind.replace('_', ''), int(number or 0)] = item

    file.visititems(visit)
    largest = max(models.values(), key=len, default={})
    return {
        place: SavedLayer(str(group.attrs.get('name', group.name)), _arrays(group, sorted(group, key=int)))
        for place, group in largest.items()
    }


def _arrays(group: h5py.Group, keys: list[str]) -> list[np.ndarray]:
    return [np.asarray(group[key][()], 'float32') for key in keys]


def _strings(group: h5py.Group, name: str) -> list[str]:
    """An attribute that is a list of strings; Keras cuts long ones into name0, name1, ..."""
    parts = [name] if name in group.attrs else []
    while f'{name}{len(parts)}' in group.attrs:
        parts.append(f'{name}{len(parts)}')
    return [text.decode() if isinstance(text, bytes) else text for part in parts for text in group.attrs[part]]


def _by_place(saved: dict[Place, SavedLayer], model: keras.Model) -> list[SavedLayer | None]:
    """What a file has at the places of a model's layers with weights."""
    found: list[SavedLayer | None] = []
    counts: collections.Counter[str] = collections.Counter()
    for layer in model.layers:
        kind = type(layer).__name__.lower()
        if layer.weights:
            found.append(saved.get(len(found)) or saved.get((kind, counts[kind])))
        counts[kind] += 1
    return found


def _fill(layer: keras.Layer, source: SavedLayer | None) -> bool:
    if source is None or not _fits(layer, source):
        return False
    layer.set_weights(source.values)
    return True


def _fits(layer: keras.Layer, source: SavedLayer | None) -> bool:
    return source is not None and [value.shape for value in source.values] == [value.shape for value in layer.weights]


def _shapes(values: list[np.ndarray]) -> str:
    return ' '.join(str(list(value.shape)) for value in values)
