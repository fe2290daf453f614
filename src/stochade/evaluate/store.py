"""Records on disk: one parquet file per attack and chunk, written atomically, so that a run may be killed at any
moment and goes on where it stood with the same final bytes.

    FOLDER/run.json                  configuration, its digest, the attacks in order (no dates)
    FOLDER/provenance.json           versions, hardware, command, date of the last session, seconds of every attack
    FOLDER/records/<attack>/00000.parquet
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from stochade.errors import RecordsError
from stochade.evaluate.records import SCHEMA, AttackRecord, Records
from stochade.files import write_atomically

LONGEST = 120  # characters of a file name before its hash


def slug(name: str) -> str:
    """A file name for an attack's name, unique by a short hash where characters had to go; file systems take no more
    than 255 bytes, of which an attack written out in full needs more."""
    plain = re.sub(r"[^A-Za-z0-9._=-]+", "_", name)[:LONGEST]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def unit_path(folder: Path, attack: str, chunk: int) -> Path:
    return folder / "records" / slug(attack) / f"{chunk:05d}.parquet"


def write_json(path: Path, document: object) -> None:
    write_atomically(path, (json.dumps(document, indent=1, default=str) + "\n").encode())


def _list(rows: np.ndarray, kind: Any) -> Any:
    import pyarrow as pa

    flat = np.ascontiguousarray(rows)
    offsets = (
        np.arange(0, flat.size + 1, flat.shape[1], dtype=np.int32)
        if flat.shape[1]
        else np.zeros(len(flat) + 1, np.int32)
    )
    return pa.ListArray.from_arrays(offsets, pa.array(flat.reshape(-1), kind))


def unit_bytes(ids: np.ndarray, labels: np.ndarray, record: AttackRecord, first: int, digest: str) -> bytes:
    """The parquet file of one unit. Equal units give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [record.images.get(first + i) for i in range(len(ids))]
    shape = next((list(im.shape) for im in images if im is not None), [])
    table = pa.table(
        {
            "row": pa.array(np.arange(first, first + len(ids)), pa.int64()),
            "id": pa.array(ids, pa.int64()),
            "label": pa.array(labels, pa.int64()),
            "predictions": _list(record.predictions, pa.int16()),
            "selection": _list(record.selection, pa.int16()),
            "vote_logits": pa.array(record.vote_logits, pa.int16()),
            "vote_probabilities": pa.array(record.vote_probabilities, pa.int16()),
            "distance": pa.array(record.distance, pa.float32()),
            "value": pa.array(record.value, pa.float32()),
            "forwards": pa.array(record.forwards, pa.int32()),
            "backwards": pa.array(record.backwards, pa.int32()),
            "found_at": pa.array(record.found_at, pa.int32()),
            "winner": pa.array(record.winner, pa.int16()),
            "target": pa.array(record.targets, pa.int16()),
            "trace": _list(record.trace, pa.float32()),
            "trace_distance": _list(record.trace_distance, pa.float32()),
            "trace_passes": _list(record.trace_passes, pa.int32()),
            "image": pa.array([None if im is None else im.astype("<f4").tobytes() for im in images], pa.binary()),
        }
    )
    facts = {"schema": SCHEMA, "digest": digest, "info": record.info, "image_shape": shape}
    table = table.replace_schema_metadata({"stochade": json.dumps(facts)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    return sink.getvalue().to_pybytes()


def read_unit(path: Path) -> tuple[dict, np.ndarray, np.ndarray, AttackRecord]:
    """(facts, ids, labels, record) of one unit file; RecordsError where it is damaged or of a newer schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[b"stochade"])
    except (OSError, pa.ArrowException, KeyError, TypeError, json.JSONDecodeError) as problem:
        raise RecordsError(
            "a parquet file of records", f"{path.name}: {problem}", "delete it and resume the run"
        ) from None
    if facts["schema"] > SCHEMA:
        raise RecordsError(f"records of schema {SCHEMA} or older", f"schema {facts['schema']}", "update stochade")
    n = len(table)

    def column(name: str) -> np.ndarray:
        return table[name].combine_chunks().to_numpy(zero_copy_only=False)

    def matrix(name: str, dtype: Any) -> np.ndarray:
        values = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return values.reshape(n, -1).astype(dtype) if n else np.empty((0, 0), dtype)

    rows, raw = column("row"), table["image"].to_pylist()
    images = {
        int(row): np.frombuffer(data, "<f4").reshape(facts["image_shape"])
        for row, data in zip(rows, raw, strict=True)
        if data is not None
    }
    record = AttackRecord(
        predictions=matrix("predictions", np.int16),
        selection=matrix("selection", np.int16),
        vote_logits=column("vote_logits"),
        vote_probabilities=column("vote_probabilities"),
        distance=column("distance"),
        value=column("value"),
        forwards=column("forwards"),
        backwards=column("backwards"),
        **_since_schema_2(table, column, matrix, n),
        trace=matrix("trace", np.float32),
        images=images,
        info=facts["info"],
    )
    return facts, column("id"), column("label"), record


def _since_schema_2(table: Any, column: Any, matrix: Any, count: int) -> dict[str, np.ndarray]:
    """What records of schema 1 lack, as unknown."""
    targets = {"targets": column("target") if "target" in table.column_names else np.full(count, -1, np.int16)}
    if "found_at" in table.column_names:
        return targets | {
            "found_at": column("found_at"),
            "winner": column("winner"),
            "trace_distance": matrix("trace_distance", np.float32),
            "trace_passes": matrix("trace_passes", np.int32),
        }
    trace = matrix("trace", np.float32)
    spent = column("forwards") + column("backwards")
    return targets | {
        "found_at": spent,
        "winner": np.full(count, -1, np.int16),
        "trace_distance": np.full_like(trace, np.nan),
        "trace_passes": np.zeros(trace.shape, np.int32),
    }


def join(parts: list[AttackRecord]) -> AttackRecord:
    """The chunks of one attack, in order, as one record; traces are padded with NaN."""
    steps = max(p.trace.shape[1] for p in parts)

    def padded(trace: np.ndarray) -> np.ndarray:
        fill = np.nan if trace.dtype.kind == "f" else 0
        extra = np.full((len(trace), steps - trace.shape[1]), fill, trace.dtype)
        return np.concatenate([trace, extra], axis=1)

    traces = {
        name: np.concatenate([padded(getattr(p, name)) for p in parts])
        for name in ("trace", "trace_distance", "trace_passes")
    }

    names = (
        "predictions", "selection", "vote_logits", "vote_probabilities", "distance", "value", "forwards", "backwards",
        "found_at", "winner", "targets",
    )  # fmt: skip
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    images = {row: image for p in parts for row, image in p.images.items()}
    return AttackRecord(**joined, **traces, images=images, info=parts[0].info)


def save_records(records: Records, folder: Path) -> Path:
    """Write finished records as one chunk per attack."""
    digest = records.meta.get("digest", "")
    for name, record in records.attacks.items():
        write_atomically(unit_path(folder, name, 0), unit_bytes(records.ids, records.labels, record, 0, digest))
    meta = dict(records.meta)
    provenance = meta.pop("provenance", None)
    write_json(folder / "run.json", meta | {"attacks": list(records.attacks), "chunks": 1, "schema": SCHEMA})
    if provenance is not None:
        write_json(folder / "provenance.json", provenance)
    records.folder = folder
    return folder


def load_records(folder: Path) -> Records:
    """See `Records.load`."""
    run = folder / "run.json"
    if not run.is_file():
        raise RecordsError("a run folder with run.json", str(folder), "run: stochade attack TARGET --out FOLDER")
    try:
        meta = json.loads(run.read_text())
    except json.JSONDecodeError as problem:
        raise RecordsError("valid JSON in run.json", str(problem), "run the evaluation again") from None
    attacks, ids, labels = {}, None, None
    for name in meta["attacks"]:
        paths = [unit_path(folder, name, i) for i in range(meta["chunks"])]
        missing = sum(not p.is_file() for p in paths)
        if missing:
            raise RecordsError(
                f"{len(paths)} chunks of {name!r}",
                f"{missing} missing",
                "the run is unfinished: start it again with --out",
            )
        units = [read_unit(p) for p in paths]
        attacks[name] = join([u[3] for u in units])
        ids, labels = np.concatenate([u[1] for u in units]), np.concatenate([u[2] for u in units])
    provenance = folder / "provenance.json"
    if provenance.is_file():
        meta["provenance"] = json.loads(provenance.read_text())
    if ids is None or labels is None:
        raise RecordsError("at least one attack", "none in run.json")
    return Records(ids, labels, attacks, meta, folder)
