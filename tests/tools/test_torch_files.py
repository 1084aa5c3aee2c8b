"""Tensors of every layout come out of every kind of file as PyTorch put them in; nothing that is unpickled runs."""

import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
from safetensors import numpy as safetensors

from pipeline.errors import InputError
from tests.tools import pytorch
from tools import torch_files

# Writes tensors of every kind to FOLDER, and the same as numpy's.
WRITER = """
import sys, numpy, torch
folder = sys.argv[1]
whole = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
tensors = {
    'whole': whole, 'turned': whole.permute(2, 0, 1), 'part': whole[1:, ::2, 1], 'spread': whole[0, :, :1].expand(3, 5),
    'number': torch.tensor(7), 'empty': torch.zeros(0, 3), 'parameter': torch.nn.Parameter(torch.ones(2)),
    'half': whole.half(), 'double': whole.double(), 'int': whole.int(), 'short': whole.short(), 'byte': whole.byte(),
    'char': -whole.char(), 'bool': whole > 5,
}
torch.save(tensors, f'{folder}/zip.pth')
torch.save(tensors, f'{folder}/legacy.pth', _use_new_zipfile_serialization=False)
torch.save(torch.nn.Linear(2, 3), f'{folder}/module.pth')
torch.save([whole], f'{folder}/list.pth')
torch.save({'brain': whole.bfloat16()}, f'{folder}/bfloat16.pth')
numpy.savez(f'{folder}/expected.npz', **{name: value.detach().numpy() for name, value in tensors.items()})
"""


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A folder of files that PyTorch wrote."""
    folder = tmp_path_factory.mktemp('torch')
    subprocess.run([pytorch.python_or_skip(), '-c', WRITER, folder], check=True)
    return folder


def write_zip(path, pickled: bytes) -> str:
    """A file as PyTorch writes it, with a storage of four numbers."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', pickled)
        archive.writestr('archive/data/0', np.arange(4, dtype='<f4').tobytes())
    return str(path)


def pickled_tensor(*, offset: int, length: int, stride: int) -> bytes:
    """The pickle of {'a': a tensor in that storage}."""
    row = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
    rest = f'I{offset}\n(I{length}\nt(I{stride}\ntI00\nN'.encode()
    return b"(dS'a'\nctorch._utils\n_rebuild_tensor_v2\n(" + row + rest + b'tRs.'


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth'])
def test_tensors_of_every_layout_and_type_are_read(written, name):
    found = torch_files.read(str(written / name))
    with np.load(written / 'expected.npz') as expected:
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert found[key].dtype == value.dtype
            np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('module.pth', r'holds torch.nn.modules.linear.Linear, not tensors alone; save one with torch.save\('),
        ('list.pth', r'is no state dict; save one with torch.save\('),
        ('bfloat16.pth', 'holds torch.BFloat16Storage, not tensors alone'),
    ],
)
def test_what_is_no_state_dict_is_refused(written, name, message):
    with pytest.raises(InputError, match=f'{name}: {message}'):
        torch_files.read(str(written / name))


@pytest.mark.parametrize('name', ['zip.pth', 'legacy.pth'])
@pytest.mark.parametrize('share', [0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_told_in_one_line(written, tmp_path, name, share):
    content = (written / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=f"{name}: can't be read as PyTorch weights .*; get the file again") as error:
        torch_files.read(str(tmp_path / name))
    assert '\n' not in str(error.value)


def test_nothing_that_a_file_names_is_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'harm'),)

    path = write_zip(tmp_path / 'a.pth', pickle.dumps({'a': Harm()}))
    with pytest.raises(InputError, match=r'a.pth: holds posix.mkdir, not tensors alone'):
        torch_files.read(path)
    assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize(
    ('offset', 'length', 'stride', 'fits'),
    [(0, 4, 1, True), (1, 3, 1, True), (0, 2, 3, True), (4, 0, 1, True)]
    + [(0, 5, 1, False), (1, 4, 1, False), (0, 2, 4, False), (-1, 2, 1, False), (3, 2, -1, False), (0, -1, 1, False)],
)
def test_a_tensor_stays_within_its_storage(tmp_path, offset, length, stride, fits):
    path = write_zip(tmp_path / 'a.pth', pickled_tensor(offset=offset, length=length, stride=stride))
    if fits:
        expected = [offset + stride * number for number in range(length)]
        assert torch_files.read(path)['a'].tolist() == expected
    else:
        with pytest.raises(InputError, match="can't be read as PyTorch weights"):
            torch_files.read(path)


def test_safetensors_are_read(tmp_path):
    tensors = {'module.a': np.arange(6, dtype='f').reshape(2, 3), 'b': np.array([1], 'float16')}
    safetensors.save_file(tensors, tmp_path / 'a.safetensors')
    found = torch_files.read(str(tmp_path / 'a.safetensors'))
    assert sorted(found) == ['a', 'b']
    np.testing.assert_array_equal(found['a'], tensors['module.a'])


@pytest.mark.parametrize('name', ['a.safetensors', 'a.pth'])
@pytest.mark.parametrize('content', [b'', b'no weights', b'\x00' * 1000])
def test_what_is_no_file_of_weights_is_told_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: can't be read as PyTorch weights .*; get the file again") as error:
        torch_files.read(str(tmp_path / name))
    assert '\n' not in str(error.value)


def test_a_file_without_tensors_is_refused(tmp_path):
    safetensors.save_file({}, tmp_path / 'a.safetensors')
    for path in (str(tmp_path / 'a.safetensors'), write_zip(tmp_path / 'a.pth', pickle.dumps({}))):
        with pytest.raises(InputError, match='holds no tensors'):
            torch_files.read(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match='a.pth: no such file'):
        torch_files.read(str(tmp_path / 'a.pth'))


@pytest.mark.parametrize('name', ['torch FloatStorage', 'torch._utils _rebuild_tensor_v2', 'torch Size'])
def test_a_pickle_can_not_set_the_state_of_what_it_names(tmp_path, name):
    """As one that gave numpy's dtype another state: reading it then ended in a segmentation fault."""
    module, what = name.split()
    state = b'}X\x04\x00\x00\x00nameK\x01s'  # {'name': 1}
    pickled = b'\x80\x02c' + f'{module}\n{what}\n'.encode() + b'N' + state + b'\x86b.'
    path = tmp_path / 'bad.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('bad/data.pkl', pickled)
    with pytest.raises(InputError, match='bad.pth'):
        torch_files.read(str(path))
    for called in torch_files.CALLABLE.values():
        assert not hasattr(called, 'name') or called is tuple
