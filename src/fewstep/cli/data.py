"""`fewstep data`."""

import typer

app = typer.Typer(help="Looks at data.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def options() -> None:
    """Looks at data."""


@app.command(epilog="Example: fewstep data check mnist/")
def check(
    source: str = typer.Argument(help="digits, or a file or folder of data."),
    overrides: list[str] | None = typer.Argument(
        None, help="limit=1000, fraction=0.1, split=test, size=64, kind=folder …"
    ),
) -> None:
    """Reads all of a data source and says what was found."""
    from fewstep.choice import kind_of
    from fewstep.cli.configure import source_of

    chosen = source_of(source, overrides or [])
    everything = chosen.read()
    kept = chosen.choose(everything)
    print(f"kind: {kind_of(type(chosen))}")
    for key, value in everything.notes.items():
        print(f"{key}: {value}")
    channels, height, width = everything.shape
    print(
        f"images: {len(everything)} of {height}×{width}, {channels} channel{'s' * (channels > 1)}"
    )
    if everything.labels is not None:
        counts = everything.labels.bincount(minlength=everything.classes).tolist()
        print(f"classes: {everything.classes}, images in each: {' '.join(map(str, counts))}")
    for split in ("train", "test"):
        print(f"split {split}: {len(chosen.choose(everything, split, empty=True))}")
    print(
        f"kept with these options: {len(kept)} (split {chosen.split}), fingerprint "
        f"{kept.fingerprint()}"
    )
