"""DenseNet161 and DPN-92 in PyTorch, with the names of torchvision and timm, and what they make of some pictures.

A program for a Python with PyTorch, which needn't be that of the tests: `python pytorch_networks.py NETWORK WIDTH SIZE
FOLDER` builds one with random weights and statistics and writes into FOLDER its weights as several kinds of files,
pictures.npy and features.npy (in evaluation mode), and by their names the gradients of sum(features * factors.npy), of
the convolutions and of batch normalisation's two arrays.
"""

import collections
import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))  # in 0..1
DPN = (np.array([124, 117, 104]) / 255, np.full(3, 1 / (0.0167 * 255)))


def channels(published: int, width: float, multiple: int = 8) -> int:
    return max(multiple, int(published * width / multiple + 0.5) * multiple)


class DenseLayer(nn.Module):
    def __init__(self, before: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        new = self.conv1(functional.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.norm2(new)))], 1)


class Transition(nn.Module):
    def __init__(self, before: int):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(before), nn.Conv2d(before, before // 2, 1, bias=False)

    def forward(self, x):
        return functional.avg_pool2d(self.conv(functional.relu(self.norm(x))), 2)


class Network(nn.Module):
    """features, their mean over the picture, classifier."""

    def __init__(self, features: nn.Module, classifier: nn.Module):
        super().__init__()
        self.features, self.classifier = features, classifier

    def forward(self, x):
        return self.features(x).mean((2, 3))


def densenet161(width: float) -> Network:
    growth = channels(48, width)
    parts = collections.OrderedDict(
        conv0=nn.Conv2d(3, 2 * growth, 7, stride=2, padding=3, bias=False), norm0=nn.BatchNorm2d(2 * growth),
        relu0=nn.ReLU(), pool0=nn.MaxPool2d(3, stride=2, padding=1),
    )  # fmt: skip
    count = 2 * growth
    for block, depth in enumerate((6, 12, 36, 24), 1):
        dense = collections.OrderedDict()
        for number in range(1, depth + 1):
            dense[f'denselayer{number}'] = DenseLayer(count, growth)
            count += growth
        parts[f'denseblock{block}'] = nn.Sequential(dense)
        if block < 4:
            parts[f'transition{block}'] = Transition(count)
            count //= 2
    parts['norm5'], parts['relu5'] = nn.BatchNorm2d(count), nn.ReLU()
    return Network(nn.Sequential(parts), nn.Linear(count, 1000))


class NormReluConv(nn.Module):
    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.bn = nn.BatchNorm2d(before, eps=0.001)
        self.conv = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, groups=groups, bias=False)

    def forward(self, x):
        return self.conv(functional.relu(self.bn(x)))


class DualPath(nn.Module):
    def __init__(self, before: int, r: int, bw: int, inc: int, projection: str):
        super().__init__()
        stride = 2 if projection.endswith('s2') else 1
        if projection:
            self.add_module(projection, NormReluConv(before, bw + 2 * inc, 1, stride))
        self.c1x1_a = NormReluConv(before, r, 1)
        self.c3x3_b = NormReluConv(r, r, 3, stride, groups=32)
        self.c1x1_c = NormReluConv(r, bw + inc, 1)
        self.projection, self.bw = projection, bw

    def forward(self, x):
        residual, dense = x if isinstance(x, tuple) else (x, x[:, :0])
        whole = torch.cat([residual, dense], 1)
        if self.projection:
            projected = getattr(self, self.projection)(whole)
            residual, dense = projected[:, : self.bw], projected[:, self.bw :]
        new = self.c1x1_c(self.c3x3_b(self.c1x1_a(whole)))
        return residual + new[:, : self.bw], torch.cat([dense, new[:, self.bw :]], 1)


class Stem(nn.Module):
    def __init__(self, after: int):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, after, 7, 2, padding=3, bias=False), nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x)))


class CatNormRelu(nn.Module):
    def __init__(self, before: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(before, eps=0.001)

    def forward(self, x):
        return functional.relu(self.bn(torch.cat(x, 1)))


def dpn92(width: float) -> Network:
    count = channels(64, width)
    parts = collections.OrderedDict(conv1_1=Stem(count), conv1_pool=nn.MaxPool2d(3, stride=2, padding=1))
    for stage, blocks, inc in ((2, 3, 16), (3, 4, 32), (4, 20, 24), (5, 3, 128)):
        r, bw, inc = channels(24 * 2**stage, width, 32), channels(64 * 2**stage, width), channels(inc, width)
        for number in range(1, blocks + 1):
            projection = '' if number > 1 else 'c1x1_w_s1' if stage == 2 else 'c1x1_w_s2'
            parts[f'conv{stage}_{number}'] = DualPath(count, r, bw, inc, projection)
            count = bw + 3 * inc if number == 1 else count + inc
    parts['conv5_bn_ac'] = CatNormRelu(count)
    return Network(nn.Sequential(parts), nn.Conv2d(count, 1000, 1))


def shake(network: Network) -> None:
    """Batch normalisation as after training: no two channels alike."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            module.num_batches_tracked.fill_(7)


class AsBefore04:
    """A tensor as PyTorch before 0.4 pickled it."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    def __reduce__(self):
        tensor = self.tensor
        return torch._utils._rebuild_tensor, (tensor.storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def save_weights(network: Network, folder: Path) -> None:
    state = network.state_dict()
    torch.save(state, folder / 'weights.pth')
    torch.save(state, folder / 'before-1.6.pth', _use_new_zipfile_serialization=False)
    parallel = {f'module.{name}': value for name, value in state.items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9).state_dict()
    torch.save({'epoch': 3, 'arch': 'x', 'state_dict': parallel, 'optimizer': optimizer}, folder / 'checkpoint.pth.tar')
    # As torchvision's of 2017.
    old = {re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2', name): value for name, value in state.items()}
    old = {name: AsBefore04(value) for name, value in old.items() if 'num_batches_tracked' not in name}
    torch.save(old, folder / 'before-0.4.pth', _use_new_zipfile_serialization=False)


def main(name: str, width: float, size: int, folder: Path) -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    network = {'densenet161': densenet161, 'dpn92': dpn92}[name](width)
    shake(network)
    network.eval()
    pictures = random.uniform(0, 255, [2, size, size, 3]).astype('f')
    mean, deviation = DPN if name == 'dpn92' else IMAGENET
    scaled = ((pictures / 255 - mean) / deviation).astype('f')
    features = network(torch.from_numpy(scaled).permute(0, 3, 1, 2))
    factors = random.uniform(-1, 1, features.shape).astype('f')
    (features * torch.from_numpy(factors)).sum().backward()
    save_weights(network, folder)
    np.savez(folder / 'tensors.npz', **{key: value.numpy() for key, value in network.state_dict().items()})
    gradients = {key: value.grad.numpy() for key, value in network.named_parameters() if value.grad is not None}
    np.savez(folder / 'gradients.npz', **gradients)
    for key, value in (('pictures', pictures), ('features', features.detach().numpy()), ('factors', factors)):
        np.save(folder / f'{key}.npy', value)


if __name__ == '__main__':
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
