"""Feature folders in Qdrant, through its own client (``pip install qdrant-client``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ._folder import FeatureFolder

if TYPE_CHECKING:
    from qdrant_client import QdrantClient


def push(
    folder: FeatureFolder | str | os.PathLike[str],
    client: QdrantClient,
    collection: str,
    column: str | None = None,
    *,
    batch_size: int = 256,
    replace: bool = False,
) -> int:
    """Writes the rows of a folder as points: id = row, vector = features, payload = path and label. Cosine distance.

    Args:
        client: a ``QdrantClient``: of a server, or ``QdrantClient(path=..)`` or ``(":memory:")`` without one.
        collection: made where there is none; with ``replace`` made anew.

    Returns:
        The number of points written.
    """
    from qdrant_client import models

    folder = folder if isinstance(folder, FeatureFolder) else FeatureFolder(folder)
    features = folder.to_numpy(column).reshape(len(folder), -1)
    if replace and client.collection_exists(collection):
        client.delete_collection(collection)
    if not client.collection_exists(collection):
        vectors = models.VectorParams(size=features.shape[1], distance=models.Distance.COSINE)
        client.create_collection(collection, vectors_config=vectors)
    rows, paths, labels = folder.rows.tolist(), folder.paths, folder.labels
    for first in range(0, len(rows), batch_size):
        last = min(first + batch_size, len(rows))
        payloads = [{"path": paths[i], "label": labels[i]} for i in range(first, last)]
        points = models.Batch(ids=rows[first:last], vectors=features[first:last].tolist(), payloads=payloads)
        client.upsert(collection, points, wait=True)
    return len(rows)
