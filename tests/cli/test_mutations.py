"""Whatever stands in a run file or behind `=`: the run begins, or one line per mistake says what is
wrong, with exit code 2. Mutants are drawn by a seed; a failing one is shown by its number.
"""

import random
from pathlib import Path

import pytest
from tests.cli.conftest import LOOP, NETWORK

from fewstep.cli.configure import configured
from fewstep.options import values
from fewstep.training.trainer import Trainer
from fewstep.yaml import to_yaml

OVERRIDES, FILES = 180, 140
RECIPES = ("digits_teacher", "digits_cd", "digits_dmd2", "digits_classifier")
NASTY = (
    *("", "0", "-1", "1e300", "-1e300", "1e-300", ".nan", ".inf", "-.inf", "true", "null", "~"),
    *("100000000000000000000", "1000000000000", "9" * 5000, "0x", "1e", "--1", "1,2", "½", "²"),
    *("[]", "[[]]", "[0]", "[1, a]", "[1e300]", "[", "]", "{}", "{", "{kind: x}", "{kind: [a]}"),
    *("{a: {b: {c: d}}}", "{kind: unet}", "{kind: {kind: heun}}", "? x", "- x", "a: b", "#", "%"),
    *("!!int ''", "!!float ''", "!!bool xyz", "!x", "*x", "&x", "|", ">", "'", '"', "\\", "\t"),
    *("meta", "cuda:99", "xla", "/", "..", "\x00", "\x1b[31m", "\udce9", "\U0001f600", "x" * 3000),
)


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch):
    """All is made that a run needs; then it ends well."""

    def fit(*_, **__):
        raise SystemExit(0)

    monkeypatch.setattr(Trainer, "fit", fit)


@pytest.fixture
def answered(fewstep):
    """Runs a command that must end with 0, or with 2 and lines that somebody can read."""

    def call(*words, what=""):
        ended = fewstep(*words)
        lines = ended.err.splitlines()
        assert ended.code in (0, 2), f"{what}: {ended}"
        errors = [line for line in lines if line.startswith("error: ")]
        assert (len(errors) > 0) == (ended.code == 2), f"{what}: {ended}"
        for line in lines:
            assert line.startswith(("error: ", "warning: ")), f"{what}: {ended}"
            assert len(line) < 600, f"{what}: {len(line)} characters"
            assert "Traceback" not in line
        return ended

    return call


def base(recipe):
    network = NETWORK if recipe == "digits_teacher" else ()
    return ["train", recipe, "--restart", *network, *LOOP, "data.limit=20"]


def test_mutated_overrides(answered):
    rng = random.Random(1)
    options = {}
    for recipe in RECIPES:
        run, _ = configured(recipe, base(recipe)[3:])
        options[recipe] = [path for path, _, _ in values(run)]
    for number in range(OVERRIDES):
        recipe = rng.choice(RECIPES)
        words = []
        for _ in range(rng.choice((1, 1, 2))):
            path = rng.choice(options[recipe])
            if rng.random() < 0.1:
                path += rng.choice((".kind", ".x", ".", "=", "[0]", "\x1b", ".path.ema"))
            words.append(f"{path}={rng.choice(NASTY)}")
        answered(*base(recipe), *words, what=f"{number}: {recipe} {words!r:.300}")


def test_mutated_run_files(answered):
    rng = random.Random(2)
    texts = []
    for recipe in RECIPES:
        run, _ = configured(recipe, base(recipe)[3:])
        texts.append(to_yaml(run.dump()))
    for number in range(FILES):
        text = mutated(rng, rng.choice(texts))
        Path("mine.yaml").write_bytes(text)
        answered("train", "mine.yaml", "--restart", what=f"{number}: {text!r:.2000}")


def mutated(rng, text):
    """The text with one to four changes: lines, values, characters, bytes."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(lines))
        change = rng.randrange(8)
        if change == 0:
            del lines[place]
        elif change == 1:
            lines.insert(place, lines[rng.randrange(len(lines))])
        elif change == 2:
            lines[place] = " " * rng.randint(1, 3) + lines[place]
        elif change == 3:
            lines[place] = lines[place].lstrip()
        elif change <= 5 and ":" in lines[place]:
            lines[place] = f"{lines[place].partition(':')[0]}: {rng.choice(NASTY)}"
        else:
            at = rng.randrange(len(lines[place]) + 1)
            inserted = rng.choice("{}[],:#&*!|>'\"%@`\t\\?- x0.")
            lines[place] = lines[place][:at] + inserted + lines[place][at + change % 2 :]
        if not lines:
            return b""
    content = bytearray("\n".join(lines).encode(errors="surrogateescape"))
    if rng.random() < 0.2:
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


@pytest.mark.parametrize(
    "word",
    [
        "trainer.steps=!!int ''",
        "trainer.optimizer.lr=!!float ''",
        "trainer.compile=!!bool xyz",
        "trainer.batch=100000000000000000000",
        "trainer.batch=1000000000000",
        "trainer.steps=100000000000000000000",
        "trainer.sample_steps=[2147483647]",
        "trainer.device=meta",
        "teacher.network.multipliers=[]",
        "teacher.network.blocks=1000000000000",
        "teacher.network.channels=1000000000000",
        "teacher.network.channels=16000",
        "teacher.parameterization={kind: edm, sigma_data: 1e300}",
        "teacher.process.t_max=1e300",
        "data.limit=100000000000000000000",
        "trainer.save_every=100000000000000000000",
        "teacher={kind: unet, network: 5}",
        "method={kind: }",
        "method={kind: [a]}",
        "trainer.optimizers={student: {kind: 3}}",
        "trainer.optimizers=[adam_w]",
    ],
)
def test_at_once(refused, asleep, word):
    option = word.partition("=")[0]
    says = "teacher.network" if "16000" in word else option.rpartition(".")[2]
    refused(2, "train", "digits_teacher", *LOOP, word, says=says)
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


@pytest.mark.parametrize(
    "text",
    [
        b"data: !!python/name:os.system\nmethod: diffusion\n",
        b"data: {kind: digits, limit: !!int ''}\nmethod: diffusion\n",
        b"data: {kind: digits, limit: !!bool xyz}\nmethod: diffusion\n",
        b"trainer: {steps: [" + b"1, " * 300_000 + b"]}\n",
        b"".join(b"k%d: 1\n" % number for number in range(90_000)),
        b"a: " + b"[" * 100_000,
        b'a: "\\UFFFFFFFF"\n',
        b"%YAML 9.9\n---\na: b\n",
        b"? [a]\n: b\n",
        b"? {a: b}\n: c\n",
        b"1: 2\n3.5: 4\n",
        b"data: digits\nmethod: {? [a] : b}\n",
    ],
    ids=lambda text: str(text[:30]),
)
def test_run_files_at_once(fewstep, text):
    Path("mine.yaml").write_bytes(text)
    ended = fewstep("train", "mine.yaml")
    assert ended.code == 2
    assert len(ended.err) < 500


def test_a_configuration_of_the_largest_size_is_read(fewstep):
    """A list with thousands of entries, and a long caption of comments."""
    many = ", ".join(f"0.{number:04}" for number in range(8000))
    comment = "# a\n" * 20_000
    run = f"{comment}data: digits\nmethod: diffusion\ntrainer: {{ema: [{many}]}}\n"
    Path("mine.yaml").write_text(run)
    assert configured("mine.yaml", [])[0].trainer.ema[-1] == 0.7999
