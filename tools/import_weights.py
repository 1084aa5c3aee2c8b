"""Imports PyTorch's weights: `python -m tools.import_weights --backbone=dpn92 --input=model.safetensors`

Makes a file for model.train --weights=FILE of weights that are published for PyTorch alone. ImageNet's are
model.safetensors of timm/densenet161.tv_in1k and timm/dpn92.mx_in1k on huggingface.co, and torchvision's
densenet161-8d451a50.pth. State dicts that torch.save wrote of the same networks are read too. PyTorch isn't needed; for
.safetensors the extra `import` is (pip install -c constraints.txt -e '.[import]'). Each number must find its place;
only the last layer, which knows ImageNet's categories, is left out.
"""

from __future__ import annotations

from pipeline import program  # first: it quiets the logs of what is imported below

# isort: split
import os
import re
from typing import Any

import keras
import numpy as np
from absl import flags

from model import backbone as backbones
from pipeline import storage
from pipeline.errors import InputError, UsageError
from tools import torch_files

# Of each backbone: what torchvision and timm call a module, and our layer. Old files of torchvision's have norm.1 for
# norm1.
NAMES = {
    'densenet161': (
        (r'features\.(conv|norm)0', r'conv1_\1'),
        *(
            (rf'features\.denseblock{block}\.denselayer(\d+)\.(conv|norm)\.?(\d)', rf'conv{block + 1}_block\1_\3_\2')
            for block in (1, 2, 3, 4)
        ),
        *((rf'features\.transition{block}\.(conv|norm)', rf'conv{block + 1}_transition_\1') for block in (1, 2, 3)),
        (r'features\.norm5', 'conv5_norm'),
    ),
    'dpn92': (
        (r'features\.conv1_1\.(conv|bn)', r'conv1_\1'),
        (r'features\.(conv\d)_(\d+)\.c1x1_w_s[12]\.(conv|bn)', r'\1_block\2_0_\3'),
        (r'features\.(conv\d)_(\d+)\.c1x1_a\.(conv|bn)', r'\1_block\2_1_\3'),
        (r'features\.(conv\d)_(\d+)\.c3x3_b\.(conv|bn)', r'\1_block\2_2_\3'),
        (r'features\.(conv\d)_(\d+)\.c1x1_c\.(conv|bn)', r'\1_block\2_3_\3'),
        (r'features\.conv5_bn_ac\.bn', 'conv5_bn'),
    ),
}
HEAD = 'classifier'
# PyTorch's names of a layer's arrays in the order of layer.weights: of a convolution, and of batch normalisation.
ARRAYS = {1: ('weight',), 4: ('weight', 'bias', 'running_mean', 'running_var')}
COUNTER = 'num_batches_tracked'  # of batch normalisation; with a momentum it changes nothing

FLAGS = program.flag_values()
BACKBONE = flags.DEFINE_enum('backbone', None, sorted(NAMES), 'The network that the weights are of.', flag_values=FLAGS)
INPUT = flags.DEFINE_string(
    'input', '', 'File of PyTorch weights: .safetensors, or a state dict (.pth, .pth.tar, .bin); must be given.',
    flag_values=FLAGS,
)  # fmt: skip
OUTPUT = flags.DEFINE_string(
    'output', '', 'File to write, NAME.weights.h5; if empty, weights/BACKBONE.weights.h5.', flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Writes one file."""
    program.parse(FLAGS, argv, doc=__doc__)
    name, path = BACKBONE.value, INPUT.value
    if not name or not path:
        raise UsageError(f'--{"input" if name else "backbone"}: must be given')
    output = OUTPUT.value or f'weights/{name}.weights.h5'
    if not output.endswith('.weights.h5') or storage.is_remote(output):
        raise UsageError(f'--output={output}: must be a local NAME.weights.h5')
    tensors = torch_files.read(path)
    model = backbones.build(name, image_size=64, width=1).model  # of any size: no weight's shape hangs on it
    try:
        fill(model, tensors, backbone=name)
    except InputError as error:
        raise InputError(f'{path}: {error}; it must be of {name} as timm or torchvision has it') from None
    storage.make_folder(os.path.dirname(output) or '.')
    with storage.atomic_path(output) as temporary:
        model.save_weights(temporary)
    program.last_line(
        f'wrote {output}: {name}, {model.count_params():,} numbers, {os.path.getsize(output) / 1e6:,.1f} MB',
        then=program.command('model.train', f'--flagfile={name}.flags', f'--weights={output}'),
    )


def fill(model: keras.Model, tensors: dict[str, np.ndarray], *, backbone: str) -> None:
    """Gives a backbone's model the weights of the same network in PyTorch.

    Args:
        model: as model.backbone.build made it.
        tensors: by PyTorch's names; convolutions are [out, in a group, height, width]. Those of the last layer are left
            out, and need not be there.
        backbone: its name, a key of NAMES.

    Raises:
        InputError: a tensor has no place, another shape or numbers that aren't finite, or one is missing; the message
            names the first. The model is then filled in part.
    """
    left = places(model)
    for name, tensor in tensors.items():
        if name.startswith(f'{HEAD}.') or name.endswith(f'.{COUNTER}'):
            continue
        variable = left.pop(place(name, backbone), None)
        if variable is None:
            raise InputError(f'{name} has no place')
        value = as_keras(tensor)
        if value.shape != variable.shape:
            wanted = as_pytorch(np.empty(variable.shape)).shape
            raise InputError(f'{name} has shape {list(tensor.shape)}, not {list(wanted)}')
        if not np.isfinite(value).all():
            raise InputError(f'{name} has numbers that are not finite')
        variable.assign(value)
    for layer, array in left:
        raise InputError(f'there is no {array} for {layer}')


def places(model: keras.Model) -> dict[Any, keras.Variable]:
    """The variables of a backbone's model by layer and PyTorch's name of the array, such as ('conv1_bn', 'bias')."""
    return {
        (layer.name, array): variable
        for layer in model.layers
        if layer.weights
        for array, variable in zip(ARRAYS[len(layer.weights)], layer.weights, strict=True)
    }


def place(name: str, backbone: str) -> tuple[str, str] | None:
    """Where a tensor belongs, as a key of places(); None: nowhere."""
    module, _, array = name.rpartition('.')
    for pattern, ours in NAMES[backbone]:
        if match := re.fullmatch(pattern, module):
            return match.expand(ours).replace('norm', 'bn'), array
    return None


def as_keras(tensor: np.ndarray) -> np.ndarray:
    """PyTorch's [out, in, height, width] of a convolution as Keras' [height, width, in, out]; others as they are."""
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def as_pytorch(value: np.ndarray) -> np.ndarray:
    """The way back."""
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value


if __name__ == '__main__':
    program.run(main)
