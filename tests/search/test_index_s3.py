"""The table on an object store: written, committed and searched through Lance's own S3 client."""

from collections.abc import Iterator

import boto3
import numpy as np
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer

from biomedclip_ray.schema import index_schema
from biomedclip_ray.search import build, folding
from biomedclip_ray.search.filters import Filters
from biomedclip_ray.search.index import Index
from biomedclip_ray.search.table import TABLE
from biomedclip_ray.store.place import Place

D = 8


@pytest.fixture(params=["where the environment says", "elsewhere"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket=f"index-{port}")
    uri = f"s3://index-{port}/root/embed/abc"
    if request.param == "elsewhere":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
        uri += f"?endpoint_override=http://{host}:{port}"
    yield Place(uri)
    server.stop()


def test_an_index_on_s3_is_built_searched_and_removed(place):
    vectors = np.eye(D, dtype=np.float32)[np.arange(40) % D]
    schema = index_schema(D)
    columns = {
        "pair_id": [f"p{i}" for i in range(40)],
        "caption": [f"gel number{i}" for i in range(40)],
        "words": [folding.document(f"gel number{i}") for i in range(40)],
        "year": pa.array(range(2000, 2040), pa.int32()),
        "bundle": ["b"] * 40,
    }
    for name in ("image_vector", "text_vector"):
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), D)
    table = pa.table({name: columns.get(name, pa.nulls(40, schema.field(name).type)) for name in schema.names})
    fragments = [f for start in (0, 20) for f in build.write_rows(place, [table.slice(start, 20)], schema)]
    build.commit(place, fragments, schema, 40)
    build.finish(place, ann_rows=1000)

    index = Index.open(place.at(TABLE).uri)
    assert index.count() == 40
    hits = index.search(vectors[3], 10, filters=Filters(year_from=2010))
    assert [hit.pair_id for hit in hits[:4]] == ["p11", "p19", "p27", "p35"]
    assert [hit.pair_id for hit in index.text_search("number17", 3)] == ["p17"]

    place.at(TABLE).delete_all()
    assert not any(name.startswith(TABLE) for name in place.list())
