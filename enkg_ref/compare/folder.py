"""The folder of a comparison: arena.json says what it is of, runs/ holds one record per run, results.json the rows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..run.report import write_json

COSTS = ("forward_equivalents", "depth", "denoiser", "network", "offline", "seconds", "own_percent")
RECORD = {"method": str, "budget": int, "item": int, "seed": int, "status": str, "scores": dict, "rows": int,
          "config": dict, "cost": dict.fromkeys(COSTS, (int, float))}
MANIFEST = {"identity": {"data": list}, "c_vjp": (int, float)}
RESULTS = {"table": list, "known": dict, "tuned": list, "settings": dict, "identity": {"data": list}}


# ------------------------------------------------------------------------------------------------------- what it is of
def belongs(out, identity, c_vjp):
    """(c_vjp or None, number of items it knows of), if ``out`` is new or the folder of this comparison.

    Else ValueError.  identity : {"problem", "data": fingerprints of the items, ...}; more or fewer items are the same
    comparison.
    """
    out, identity = Path(out), json.loads(json.dumps(identity))
    manifest = out / "arena.json"
    if not manifest.exists():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"out: got {out}, which holds other files, expected an empty folder or a comparison")
        return c_vjp, 0
    saved = read(manifest, MANIFEST)
    known = saved["identity"]
    shared = min(len(identity["data"]), len(known["data"]))
    for key in sorted(set(identity) | set(known), key=lambda key: (key == "data", key)):
        old, new = known.get(key), identity.get(key)
        if (old[:shared] != new[:shared]) if key == "data" else (old != new):
            raise ValueError(f"out: got {out}, a comparison with {key} = {old}, expected {new}; choose another "
                             "folder")
    if c_vjp not in (None, saved["c_vjp"]):
        raise ValueError(f"c_vjp: got {c_vjp:g} for {out}, a comparison with {saved['c_vjp']:g}, expected the same")
    return saved["c_vjp"], len(known["data"])


def start(out, identity, c_vjp, known):
    """Make the folder; arena.json anew where there are more items than it knows of."""
    out = Path(out)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    if known < len(identity["data"]):
        write_json(out / "arena.json", {"identity": identity, "c_vjp": c_vjp})


# ------------------------------------------------------------------------------------------------------------- records
def digest(settings):
    """Fingerprint of a method's settings: a run with others is another run."""
    text = json.dumps(settings, sort_keys=True, default=lambda value: getattr(value, "__name__", str(value)))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def record_path(out, name, budget, item, seed, used):
    """Where the record of a run with the settings ``used`` is kept."""
    return Path(out) / "runs" / f"{name}_{budget}_{item}_{seed}_{digest(used)}.json"


def read_record(path):
    """The record of a run, and "file", its place in the comparison's folder.

    Raises ValueError that names the file if it is damaged or of another run than its name says.
    """
    record, path = read(path, RECORD), Path(path)
    if not path.name.startswith("{method}_{budget}_{item}_{seed}_".format(**record)):
        raise _damaged(path, "it is of another run")
    return {**record, "file": "/".join(path.parts[-2:])}


def with_earlier(out, known, records, summary):
    """``known``, ``records`` and ``summary`` of a command, and what the tables of the folder hold of earlier ones.

    Records with other settings of a method at a budget are replaced; of the same, those of other items and seeds stay.
    """
    path = Path(out) / "results.json"
    if not path.exists():
        return known, records, summary
    old, made = read(path, RESULTS), {_of(record) for record in records}
    ours = {(record["method"], record["budget"]): _settings_of(record["file"]) for record in records}
    files = [file for row in old["table"] for file in row["files"] if file and (Path(out) / file).exists()]
    kept = [record for record in (read_record(Path(out) / file) for file in files) if _of(record) not in made
            and ours.get((record["method"], record["budget"]), _settings_of(record["file"]))
            == _settings_of(record["file"])]
    if kept:
        methods = {record["method"] for record in records}
        data = max(summary["identity"]["data"], old["identity"]["data"], key=len)
        summary = {**summary, "identity": {**summary["identity"], "data": data},
                   "settings": {**old["settings"], **summary["settings"]},
                   "tuned": [words for words in old["tuned"] if words.split(":")[0] not in methods] + summary["tuned"]}
    return _wider(known, old["known"]), records + kept, summary


def _of(record):
    return tuple(record[key] for key in ("method", "budget", "item", "seed"))


def _settings_of(file):
    return Path(file).stem.rsplit("_", 1)[-1]


def _wider(known, old):
    """Known rows with the items that only the old ones have."""
    out = {}
    for name, row in known.items():
        earlier = old.get(name, {}).get("per_item", {})
        per_item = {key: {**{int(k): value for k, value in earlier.get(key, {}).items()}, **values}
                    for key, values in row["per_item"].items()}
        means = {key: sum(values.values()) / len(values) for key, values in per_item.items()}
        out[name] = {**row, "mean": means, "per_item": per_item}
    return out


# --------------------------------------------------------------------------------------------------------------- files
def read(path, form):
    """A JSON file that must have the ``form`` {key: type, or the form of a dict}; else ValueError that names it."""
    def wrong(content, form, name):
        if not isinstance(form, dict):
            return None if isinstance(content, form) else f"{name} is {content!r:.40}"
        if not isinstance(content, dict) or set(form) - set(content):
            return f"{name} lacks {', '.join(sorted(set(form) - set(content if isinstance(content, dict) else ())))}"
        return next(filter(None, (wrong(content[key], form[key], key) for key in form)), None)

    try:
        content = json.loads(Path(path).read_text())
        why = wrong(content, form, "it")
    except ValueError as error:
        why = str(error)
    if why is None:
        return content
    raise _damaged(path, why)


def _damaged(path, why):
    remedy = "choose another folder" if Path(path).name == "arena.json" else (
        "delete it, and the same command makes it anew")
    return ValueError(f"out: got a damaged file {path} ({why}), expected what was written there; {remedy}")
