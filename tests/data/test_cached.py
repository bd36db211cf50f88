"""A cache gives the rows, the draws and the losses of the data that it was made of, without their
codec and conditioner; what is damaged, or of something else, is named.
"""

import os
import pickle

import pytest
import torch
from tests import toys
from tests.data.picture_files import made, write_pictures

from fewstep.choice import replaced
from fewstep.data import caching
from fewstep.data.cache_index import read_index
from fewstep.data.cached import Cached
from fewstep.data.caching import encoders_for, planned, write
from fewstep.data.dataset import Held
from fewstep.data.folder import Folder
from fewstep.data.lazy import Files, Stored
from fewstep.data.pictures import How
from fewstep.data.stream import Stream
from fewstep.diffusion.draws import Draws
from fewstep.errors import NotFiniteError
from fewstep.files import load_tensors, replace_tensors, sha256
from fewstep.methods.diffusion import Diffusion
from fewstep.models.codec import Pixels
from fewstep.models.conditioner import Labels
from fewstep.models.source import Fresh
from fewstep.run import Run
from fewstep.training.config import TrainerConfig

CPU = torch.device("cpu")
COUNT = 60
COLUMNS = ("image", "caption", "captions", "label")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Nine rows in a file."""
    monkeypatch.setattr(caching, "MOST_ROWS", 9)


def fresh(**options):
    parts = {"codec": toys.ToyLatents(std=0.3), "conditioner": toys.ToyWords()}
    return Fresh(**{"network": toys.ToyTextNet(), **parts, **options})


def source(flip=False, holds=COLUMNS, limit=COUNT):
    return toys.Captioned(holds=holds, limit=limit, split="all", flip=flip)


def parts_of(model_source=None, seed=0):
    model = (model_source or fresh()).load(source().dataset().space, seed)
    return model.codec, model.conditioner


def caches(folder, dataset, parts=None, dtype="fp32", batch=4, workers=0):
    codec, conditioner = parts or parts_of()
    encoders = encoders_for(dataset, codec, conditioner, CPU)
    folder.mkdir(exist_ok=True)
    index = planned(dataset, encoders, dtype)
    if (folder / "index.json").is_file():
        index = read_index(folder)
    else:
        index.write(folder)
    assert list(write(index, dataset, encoders, folder, batch, workers))[-1] == len(dataset)
    return folder


def cached(folder, **options):
    return Cached(path=str(folder), **{"split": "all", **options})


def batches(dataset, parts=None, seed=3, batch=16, numbers=range(6), **options):
    stream = Stream(dataset, *(parts or parts_of()), seed, batch, **options)
    found = []
    for number in numbers:
        one = stream(number, range(batch), Draws(seed, range(batch), step=number))
        found.append((one.x0, *one.cond.values.values(), *one.cond.null.values()))
    stream.close()
    return found


def equal(one, other, tolerance=0.0):
    for mine, theirs in zip(one, other, strict=True):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert (a - b).abs().max() <= tolerance


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("holds", [COLUMNS, ("image", "caption")])
def test_batches_are_those_of_the_data(tmp_path, flip, holds):
    """Rows, mirroring, captions and what the codec draws; the null row, too."""
    data = source(flip, holds).dataset()
    caches(tmp_path / "c", data)
    again = cached(tmp_path / "c", flip=flip).dataset()
    assert again.shape == (4, 4, 4)
    equal(batches(again), batches(data), 1e-6)
    moved = [a[0] - b[0] for a, b in zip(batches(again), batches(again, seed=4))]
    assert all(one.abs().max() > 0.1 for one in moved)


def test_losses_are_those_of_the_data_and_nothing_is_encoded(tmp_path, monkeypatch):
    data = source(flip=True)
    caches(tmp_path / "c", data.dataset())
    losses = []
    for one in (data, cached(tmp_path / "c", flip=True)):
        config = TrainerConfig(steps=5, batch=16, micro_batch=8, health_every=0, log_every=1)
        ready = Run(one, Diffusion(), fresh(), trainer=config).prepared()
        if one is not data:
            for module in (ready.model.codec, ready.model.conditioner):
                monkeypatch.setattr(module, "forward", None)
            monkeypatch.setattr(ready.model.codec, "moments", None)
        losses.append([float(seen.losses["student"]) for seen in ready.trainer.steps()])
    assert len(set(losses[0])) == 5
    assert max(abs(a - b) for a, b in zip(*losses)) < 1e-5


def test_rows_without_a_training_have_the_middle_and_the_first(tmp_path):
    data = source().dataset()
    codec, conditioner = parts_of()
    rows = cached(caches(tmp_path / "c", data, (codec, conditioner))).dataset().rows
    index = torch.tensor([40, 3, 3])
    found = rows(index)
    assert set(found) == {"moments", "embedding", "caption", "captions", "label"}
    middle = codec.encode(data.floats(index))
    assert torch.equal(codec.latents(found["moments"]), middle)
    plain = data.rows(index)
    assert all(found[name] == plain[name] for name in ("caption", "captions"))
    assert torch.equal(found["label"], plain["label"])
    assert torch.equal(found["embedding"], conditioner.embedded(plain["caption"]))


def test_splits_are_those_of_the_data(tmp_path):
    caches(tmp_path / "c", source(limit=0).dataset().select(torch.arange(100)))
    for split in ("train", "test"):
        mine = cached(tmp_path / "c", split=split).dataset()
        theirs = replaced(source(limit=0), split=split).dataset()
        assert mine.ids.tolist() == [i for i in theirs.ids.tolist() if i < 100]
        assert mine.rows(torch.arange(5))["caption"] == theirs.rows(torch.arange(5))["caption"]
    assert not cached(tmp_path / "c").dataset("test").flip


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_bit(tmp_path, workers):
    caches(tmp_path / "c", source(flip=True).dataset())
    data = cached(tmp_path / "c", flip=True).dataset()
    equal(batches(data, workers=workers), batches(data))
    assert len(pickle.dumps(data)) < 30_000  # files are mapped by each process, not sent


def test_pictures_are_read_ahead_to_the_same_bytes(tmp_path):
    """Also where a part of the cache is there already."""
    names = [f"{place:02}" for place in range(20)]
    write_pictures(tmp_path / "set", **dict(zip(names, made(20, shape=(1, 8, 8))[0])))
    data = Folder(path=str(tmp_path / "set")).read()
    stored = Stored(
        Files(sorted((tmp_path / "set").iterdir())), {}, data.columns, How(), "", data.ids, {}
    )
    parts = parts_of()[0], None
    one, other = (
        caches(tmp_path / "a", data, parts),
        caches(tmp_path / "b", stored, parts, workers=2),
    )
    (other / "shard-00001.safetensors").unlink()
    caches(other, stored, parts, workers=1)
    shards = sorted(one.glob("shard-*"))
    assert len(shards) == 3
    assert all((other / file.name).read_bytes() == file.read_bytes() for file in shards)


def test_half_precision(tmp_path):
    data = source(flip=True).dataset()
    caches(tmp_path / "c", data, dtype="fp16")
    again = cached(tmp_path / "c", flip=True).dataset()
    assert again.rows(torch.arange(2))["moments"].dtype == torch.float16
    equal(batches(again), batches(data), 4e-3)
    sizes = [os.path.getsize(tmp_path / "c" / "shard-00000.safetensors")]
    caches(tmp_path / "d", data)
    sizes.append(os.path.getsize(tmp_path / "d" / "shard-00000.safetensors"))
    assert sizes[0] < 0.65 * sizes[1]


@pytest.mark.parametrize("writes", range(0, 9, 2))
def test_a_killed_cache_goes_on_to_the_same_bytes(tmp_path, monkeypatch, writes):
    data = source(flip=True).dataset()
    whole = caches(tmp_path / "whole", data)
    if os.fork() == 0:  # the child is gone at this write, as a killed process is
        real, left = caching.replace_tensors, [writes]

        def dies(path, tensors):
            left[0] -= 1
            if left[0] < 0:
                (path.parent / f".tmp-{os.getpid()}-000000-fewstep-00000000").write_bytes(b"half")
                os._exit(9)
            real(path, tensors)

        monkeypatch.setattr(caching, "replace_tensors", dies)
        caches(tmp_path / "cut", data)
        os._exit(0)
    _, status = os.wait()
    assert os.waitstatus_to_exitcode(status) == (9 if writes < 8 else 0)
    if writes < 8:
        with pytest.raises(ValueError, match=f"{8 - writes} of its files are not written yet"):
            cached(tmp_path / "cut").read()
    caches(tmp_path / "cut", data)
    for file in whole.iterdir():
        assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("name", ["shard-00003.safetensors", "null.safetensors"])
def test_a_flipped_byte_is_named_and_made_again(tmp_path, name):
    data = source().dataset()
    folder = caches(tmp_path / "c", data)
    right = {file.name: file.read_bytes() for file in folder.iterdir()}
    for place in (0, 9, len(right[name]) - 1):
        broken = bytearray(right[name])
        broken[place] ^= 1
        (folder / name).write_bytes(broken)
        with pytest.raises(ValueError, match=rf"{name} is damaged: its sha256"):
            cached(folder).read()
    caches(folder, data)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == right


def test_a_file_that_is_gone(tmp_path):
    folder = caches(tmp_path / "c", source().dataset())
    (folder / "shard-00002.safetensors").unlink()
    with pytest.raises(OSError, match="shard-00002"):
        cached(folder).read()
    (tmp_path / "d").mkdir()
    with pytest.raises(FileNotFoundError, match=r"d is no cache: it has no index\.json"):
        cached(tmp_path / "d").read()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("{", "["), r"index\.json is damaged"),
        (('"format": 1', '"format": 2'), r"index\.json: format 2 is newer than this fewstep knows"),
        (('"rows": 60', '"rows": -1'), r"index\.json is damaged: rows -1"),
        (('"rows": 60', '"rows": 61'), "shard-00006.safetensors does not hold what index.json"),
        (('"facts"', '"fact"'), r"index\.json is damaged: KeyError"),
        (('"rows": 60', '"rows": 9999999999'), r"index\.json is damaged: rows 9999999999"),
        (('"kind": "moments"', '"kind": "moment"'), r"index\.json: .*did you mean moments"),
        (('"kind": "moments"', '"kind": "vectors"'), r"index\.json: .*latent"),
        (("shard-00001.safetensors", "../x"), r"index\.json is damaged"),
    ],
)
def test_an_index_that_is_damaged(tmp_path, change, says):
    folder = caches(tmp_path / "c", source().dataset())
    text = (folder / "index.json").read_text()
    assert change[0] in text
    (folder / "index.json").write_text(text.replace(*change, 1))
    with pytest.raises(ValueError, match=says):
        cached(folder).read()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("moments", lambda x: x[1:]),
        ("moments", lambda x: x.long()),
        ("mirrored", lambda x: x[:, 1:]),
        ("embedding", lambda x: x[1:]),
        ("embedding", lambda x: x.bool()),
        ("embedding", lambda x: None),
        ("ids", lambda x: x.float()),
        ("label", lambda x: x[:0]),
        ("label", lambda x: x + 7),
        ("captions", lambda x: None),
        ("captions", lambda x: x[1:]),
        ("captions", lambda x: bytes_of("[]")),
        ("captions", lambda x: bytes_of("[" * 100_000)),
        ("captions", lambda x: bytes_of('{"a": 3}')),
        ("captions", lambda x: bytes_of(str([[]] + 8 * [["a", "b"]]).replace("'", '"'))),
        ("more", lambda x: torch.zeros(9)),
    ],
)
def test_a_file_of_another_content(tmp_path, name, change):
    """Whose sha256 is right: somebody else may have written it."""
    folder = caches(tmp_path / "c", source(flip=True).dataset())
    file = folder / "shard-00003.safetensors"
    tensors = load_tensors(file)
    changed = change(tensors.pop(name, None))
    replace_tensors(file, tensors if changed is None else {**tensors, name: changed})
    index = read_index(folder)
    index.files[file.name] = sha256(file)
    index.write(folder)
    with pytest.raises(ValueError, match=r"shard-00003\.safetensors"):
        cached(folder).read()


def bytes_of(text):
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def test_a_model_that_encodes_otherwise_is_refused(tmp_path):
    caches(tmp_path / "c", source().dataset())

    def prepared(model, seed=0):
        config = TrainerConfig(steps=1, batch=4, seed=seed)
        return Run(cached(tmp_path / "c"), Diffusion(), model, trainer=config).prepared()

    prepared(fresh())
    with pytest.raises(ValueError, match=r"another codec than the model's: options\.std: 0\.3 -> "):
        prepared(fresh(codec=toys.ToyLatents(std=0.5)))
    with pytest.raises(ValueError, match=r"another codec than the model's: weights: \w+ -> "):
        prepared(fresh(), seed=1)
    with pytest.raises(ValueError, match=r"another conditioner than the model's: options\.width"):
        prepared(fresh(conditioner=toys.ToyWords(width=7)))
    labels = fresh(conditioner=Labels(10), network=toys.TINY)
    assert prepared(labels).stream(0, range(4), Draws(0, range(4))).cond["label"].shape == (4,)


def test_the_fingerprint_is_of_the_contents(tmp_path):
    data = source().dataset()
    prints = [cached(caches(tmp_path / name, data)).dataset().fingerprint() for name in "ab"]
    prints.append(cached(caches(tmp_path / "h", data, dtype="fp16")).dataset().fingerprint())
    prints.append(cached(tmp_path / "a", limit=5).dataset().fingerprint())
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_codec_without_moments_keeps_what_it_makes(tmp_path):
    data = source().dataset()
    parts = Pixels().build(), parts_of()[1]
    again = cached(caches(tmp_path / "c", data, parts)).dataset()
    equal(batches(again, parts), batches(data, parts))
    assert again.shape == (1, 8, 8)


def test_a_codec_that_draws_without_moments_is_refused(monkeypatch):
    monkeypatch.delattr(toys.ToyLatentsModule, "latents")
    codec, conditioner = parts_of()
    monkeypatch.setattr(
        codec, "encode", lambda x, draws=None: codec.moments(x) + 0.1 * draws.normal(4, 4, 4)
    )
    encoders = encoders_for(source().dataset(), codec, conditioner, CPU)
    with pytest.raises(ValueError, match="toy_latents draws in encode, and not from its moments"):
        planned(source().dataset(), encoders, "fp32")


def test_prompts_alone(tmp_path):
    data = source(holds=("caption",)).dataset()
    again = cached(caches(tmp_path / "c", data, (None, parts_of()[1]))).dataset()
    assert set(again.columns) == {"caption", "embedding"}
    assert again.shape == ()
    (mine, theirs) = ([one[1:] for one in batches(d, shape=(4, 4, 4))] for d in (again, data))
    equal(mine, theirs)


def test_empty_captions_are_the_null_row(tmp_path):
    data = source().dataset()
    captions = [("", "a three"), (), ("a one",)] * 4
    values = {"image": data.images[:12], "caption": ["x"] * 12, "captions": captions}
    values["captions"] = [some or ("",) for some in captions]
    columns = {name: data.columns[name] for name in values}
    again = cached(caches(tmp_path / "c", Held(values, columns, torch.arange(12)))).dataset()
    embedded = again.rows(torch.arange(12))["embedding"]
    empty = (embedded == again.made_by.null).all(2).all(1)
    assert empty.tolist() == [True, True, False] * 4


@pytest.mark.parametrize(
    ("holds", "parts", "says"),
    [
        (("latent", "caption"), (True, True), "holds latent already"),
        (("image", "caption"), (False, True), "nobody says which codec"),
        (("image", "label"), (True, True), "toy_words: it reads embedding or caption"),
        (("caption",), (True, False), "anything to encode"),
    ],
)
def test_what_cannot_be_cached(holds, parts, says):
    given = [one if there else None for one, there in zip(parts_of(), parts)]
    with pytest.raises(ValueError, match=says):
        encoders_for(source(holds=holds).dataset(), *given, CPU)


def test_what_is_not_finite_is_not_cached(tmp_path):
    codec, conditioner = parts_of()
    codec.mix.mul_(1e6)
    with pytest.raises(NotFiniteError, match=r"moments of 9 entries of the rows 0 … 8"):
        caches(tmp_path / "c", source().dataset(), (codec, conditioner), dtype="fp16")
    assert not (tmp_path / "c" / "shard-00000.safetensors").exists()


def test_mirrored_images_must_be_there(tmp_path):
    caches(tmp_path / "c", source().dataset())
    with pytest.raises(ValueError, match="no mirrored images: cache them with flip=true"):
        cached(tmp_path / "c", flip=True).read()
    caches(tmp_path / "d", source(flip=True).dataset())
    plain, turned = (cached(tmp_path / name).dataset() for name in "cd")
    equal(batches(plain), batches(turned))
