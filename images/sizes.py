"""A table of images: how large they are, how much of each no other one of them holds, and their ids.

`python sizes.py DOCKER TAG...`
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter


def ask(docker: str, *arguments: str) -> str:
    return subprocess.run([docker, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def layers(docker: str, tag: str) -> dict[tuple[str, ...], int]:
    """Bytes of an image's layers, each named by the history that leads to it: two images share what is named alike.

    Raises ``subprocess.CalledProcessError`` when there is no such image.
    """
    lines = ask(docker, "history", "--no-trunc", "--human=false", "--format", "{{json .}}", tag).splitlines()
    steps = [json.loads(line) for line in reversed(lines)]
    names = [f"{step['CreatedAt']} {step['CreatedBy']} {step['Size']}" for step in steps]
    return {tuple(names[: i + 1]): int(step["Size"]) for i, step in enumerate(steps)}


def table(docker: str, tags: list[str]) -> str:
    images = {tag: layers(docker, tag) for tag in tags}
    holders = Counter(name for image in images.values() for name in image)
    width = max(len(tag) for tag in tags)
    rows = [f"{'image':<{width}}  {'MB':>6}  {'MB of its own':>13}  id"]
    for tag, image in images.items():
        own = sum(size for name, size in image.items() if holders[name] == 1)
        found = json.loads(ask(docker, "image", "inspect", tag))[0]
        rows.append(f"{tag:<{width}}  {sum(image.values()) / 1e6:>6.0f}  {own / 1e6:>13.0f}  {found['Id']}")
    together = sum({name: size for image in images.values() for name, size in image.items()}.values())
    return "\n".join([*rows, f"{'together':<{width}}  {together / 1e6:>6.0f}"])


if __name__ == "__main__":
    print(table(sys.argv[1], sys.argv[2:]))
