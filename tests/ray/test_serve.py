"""The deployed application over real HTTP: a small model, an index of drawn figures, clients, a crowd, a browser."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import expect, sync_playwright
from safetensors.torch import load_file, save_file

from biomedclip_ray.clip.bundle import WEIGHTS, save_bundle
from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.model import build_model
from biomedclip_ray.clip.prompts import class_weights, classify
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import Config, ConfigError, Model, Serve, ServeResources
from biomedclip_ray.run.memory import keeping_freed
from biomedclip_ray.sample import imaging, plots
from biomedclip_ray.search import build
from biomedclip_ray.serve import deploy as stage
from biomedclip_ray.store.product import Product
from tests.processes import of_ours

KINDS = {"micrograph": imaging.micrograph, "gel": imaging.gel, "bar_chart": plots.bar_chart}
FIGURES = 60
expect.set_options(timeout=60_000)


class Served(NamedTuple):
    url: str
    config: Config
    bundle: Product
    index: Product
    encoder: Encoder
    pictures: list[bytes]
    captions: list[str]


def product(root: Path, stage_name: str, seed: int) -> Product:
    return Product.plan(str(root), stage_name, 1, {"seed": seed}, [])


def drawn() -> tuple[list[bytes], list[str]]:
    rng = np.random.default_rng(0)
    pictures, captions = [], []
    for n in range(FIGURES):
        picture, caption = list(KINDS.values())[n % 3](rng, 160, 120)
        stream = io.BytesIO()
        picture.convert("RGB").save(stream, "PNG")
        pictures.append(stream.getvalue())
        captions.append(f"{caption} <b>no. {n}</b>")
    return pictures, captions


def make(root: Path, seed: int, pictures: list[bytes], captions: list[str]) -> tuple[Product, Product, Encoder]:
    """A bundle with weights of this seed, and the index it gives."""
    tokenizer = fit_tokenizer(captions, 400, 32)
    torch.manual_seed(seed)
    built = build_model(Model(config="sample_64", init="random"), tokenizer)
    bundle, index = product(root, "train", seed), product(root, "embed", seed)
    folder = Path(bundle.place.at("bundle").uri)
    save_bundle(
        folder, built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {"name": "t", "starts": built.starts}
    )
    encoder = Encoder.load(folder)
    images, texts = encoder.encode_images(pictures), encoder.encode_text(captions)
    rows = [
        {
            "pair_id": f"PMC{n}.1/F1#0",
            "article_id": f"PMC{n}.1",
            "image_vector": images[n],
            "text_vector": texts[n],
            "caption": captions[n],
            "title": "A title",
            "journal": "A journal",
            "year": 2000 + n % 20,
            "license": "CC0" if n % 30 == 1 else "CC BY",
            "figure_kind": list(KINDS)[n % 3],
            "split": "test" if n % 5 == 0 else "train",
            "thumbnail": thumbnail(pictures[n]),
            "x": float(np.cos(n)) * 0.9,
            "y": float(np.sin(n)) * (1 + n % 3) / 3,
            "bundle": encoder.bundle_id,
        }
        for n in range(FIGURES)
    ]
    build.from_rows(index.place.uri, rows, 10**6)
    return bundle, index, encoder


def thumbnail(picture: bytes) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(stream, "JPEG")
    return stream.getvalue()


def uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from ray import serve

    root = tmp_path_factory.mktemp("served")
    pictures, captions = drawn()
    bundle, index, encoder = make(root, 0, pictures, captions)
    settings = Serve(
        max_body_bytes=2_000_000, resources=ServeResources(port=free_port(), max_queued=64, ready_timeout_s=900)
    )
    config = Config(root=str(root), serve=settings)
    with socket.socket() as other:  # somebody else has the port
        other.bind(("127.0.0.1", settings.resources.port))
        other.listen()
        with pytest.raises(ConfigError, match=rf"serve\.resources\.port={settings.resources.port}"):
            stage.deploy(config, bundle, index)
    deployed = stage.deploy(config, bundle, index)
    assert (deployed.state, deployed.name) == ("ran", "biomedclip")
    yield Served(deployed.url, config, bundle, index, encoder, pictures, captions)
    serve.shutdown()


def test_the_engine_keeps_what_a_pass_frees(served):
    engine = of_ours(os.getpid(), "ray::ServeReplica:biomedclip:Engine")[0]
    environment = Path(f"/proc/{engine}/environ").read_bytes().decode().split("\0")
    assert {f"{name}={value}" for name, value in keeping_freed(0)["env_vars"].items()} <= set(environment)


def post(served: Served, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(served.url + path, json=body, timeout=60)


def embed(served: Served, items: Any) -> np.ndarray:
    answer = post(served, "/v1/embeddings", {"input": items}).raise_for_status().json()
    return np.array([item["embedding"] for item in answer["data"]], np.float32)


def test_deploying_the_same_bundle_and_index_again_is_skipped(served):
    began = time.monotonic()
    assert stage.deploy(served.config, served.bundle, served.index).state == "skipped"
    assert time.monotonic() - began < 20


def test_it_is_alive_ready_and_says_what_it_serves(served):
    assert httpx.get(f"{served.url}/health").json() == {"status": "alive"}
    ready = httpx.get(f"{served.url}/ready").json()
    assert (ready["status"], ready["bundle"]) == ("ready", served.encoder.bundle_id)
    assert ready["seconds_ago"] <= served.config.serve.resources.ready_within_s
    model = httpx.get(f"{served.url}/v1/models").json()["data"][0]
    assert (model["dimensions"], model["context_length"]) == (served.encoder.dimensions, 32)
    assert model["index"]["kinds"] == {"micrograph": 20, "gel": 20, "bar_chart": 20}
    assert model["index"]["licenses"] == {"CC BY": 58, "CC0": 2} and model["index"]["years"] == [2000, 2019]


def test_the_official_client_with_its_defaults_gets_the_encoders_own_vectors_in_order(served):
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    items = [served.captions[0], uri(served.pictures[1]), "gel " * 100, uri(served.pictures[2])]
    answer = client.embeddings.create(model="biomedclip", input=items, user="someone")  # asks for base64
    plain = client.embeddings.create(model="biomedclip", input=items, encoding_format="float")
    got = np.array([item.embedding for item in answer.data])
    texts = served.encoder.encode_text([items[0], items[2]])
    images = served.encoder.encode_images(served.pictures[1:3])
    assert np.abs(got - np.stack([texts[0], images[0], texts[1], images[1]])).max() < 1e-5
    assert np.abs(got - np.array([item.embedding for item in plain.data])).max() < 1e-5
    assert [json.loads(item.model_dump_json())["truncated"] for item in answer.data] == [False, False, True, False]
    used = served.encoder.tokenizer.encode([items[0], items[2]]).n_tokens
    assert used[1] == 32 and answer.usage.prompt_tokens == answer.usage.total_tokens == sum(used)


def test_a_long_text_is_cut_alike_alone_and_in_a_list(served):
    long = "gel bands " * 5000  # longer than what is tokenized at all
    alone = post(served, "/v1/embeddings", {"input": long}).json()
    among = post(served, "/v1/embeddings", {"input": ["short", long]}).json()
    assert alone["data"][0]["truncated"] and among["data"][1]["truncated"] and not among["data"][0]["truncated"]
    assert alone["usage"]["prompt_tokens"] == 32
    assert np.allclose(alone["data"][0]["embedding"], among["data"][1]["embedding"], atol=1e-5)


def test_order_and_result_do_not_depend_on_the_batch(served):
    items = [item for n in range(12) for item in (served.captions[n], uri(served.pictures[n]))]
    together = embed(served, items)
    alone = np.concatenate([embed(served, item) for item in items])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(embed(served, items[::-1])[::-1] - together).max() < 1e-5


def test_one_bad_picture_among_eight_callers_is_its_own_callers_problem_only(served):
    bodies = [{"input": uri(picture)} for picture in served.pictures[:8]]
    quiet = [embed(served, body["input"]) for body in bodies]
    whole = served.pictures[3]
    bodies[3] = {"input": uri(whole[: len(whole) // 2])}  # the header is fine, the image ends early
    with ThreadPoolExecutor(8) as callers:
        for _ in range(3):
            answers = list(callers.map(lambda body: post(served, "/v1/embeddings", body), bodies))
            assert [answer.status_code for answer in answers] == [200, 200, 200, 400, 200, 200, 200, 200]
            error = answers[3].json()["error"]
            assert error["code"] == "broken_image" and "cannot be decoded" in error["message"]
            for n in (0, 1, 2, 4, 5, 6, 7):
                assert np.abs(np.array(answers[n].json()["data"][0]["embedding"]) - quiet[n][0]).max() < 1e-5


def test_a_picture_with_a_huge_text_chunk_never_breaks_the_server(served):
    note = PngInfo()
    note.add_text("comment", "x" * 5_000_000, zip=True)
    stream = io.BytesIO()
    Image.open(io.BytesIO(served.pictures[0])).save(stream, "PNG", pnginfo=note)
    answer = post(served, "/v1/embeddings", {"input": [uri(stream.getvalue()), "after"]})
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert answer.json()["error"]["param"] == "input[0]"


def test_a_figures_own_picture_and_caption_find_it_first(served):
    for n in (0, 7, 23):
        found = post(served, "/v1/search", {"query": uri(served.pictures[n]), "k": 3}).json()["data"]
        assert len(found) == 3 and found[0]["pair_id"] == f"PMC{n}.1/F1#0"
        assert found[0]["score"] == pytest.approx(1, abs=1e-4) and found[0]["caption"] == served.captions[n]
        assert found[0]["article_url"] == f"https://pmc.ncbi.nlm.nih.gov/articles/PMC{n}/"
        with Image.open(io.BytesIO(base64.b64decode(found[0]["thumbnail"].partition(",")[2]))) as picture:
            assert picture.format == "JPEG" and picture.size == (160, 120)
        by_caption = post(served, "/v1/search", {"query": served.captions[n], "by": "caption", "k": 1}).json()["data"]
        assert by_caption[0]["caption"] == served.captions[n]


def test_filters_come_before_the_search_so_that_all_that_pass_are_found(served):
    def found(**filters: Any) -> list[dict[str, Any]]:
        return post(served, "/v1/search", {"query": "cells", "k": 50, "filters": filters}).json()["data"]

    assert {hit["figure_kind"] for hit in found(kinds=["gel"])} == {"gel"} and len(found(kinds=["gel"])) == 20
    assert {hit["pair_id"] for hit in found(licenses=["CC0"])} == {"PMC1.1/F1#0", "PMC31.1/F1#0"}
    assert {hit["year"] for hit in found(year_from=2018, year_to=2019)} == {2018, 2019}
    assert found(year_from=2030) == []
    wrong = post(served, "/v1/search", {"query": "cells", "filters": {"kinds": ["radiograf"]}})
    assert wrong.status_code == 400 and "bar_chart, gel, micrograph" in wrong.json()["error"]["message"]


def test_words_are_searched_as_words(served):
    found = post(served, "/v1/search", {"query": "no. 17", "by": "words", "k": 1}).json()["data"]
    assert found[0]["caption"] == served.captions[17]
    wrong = post(served, "/v1/search", {"query": uri(served.pictures[0]), "by": "words"})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "by"


def test_classify_is_the_rooms_own_zero_shot(served):
    labels, templates = ["gel", "bar chart", "micrograph"], ["a {}", "a picture of a {}"]
    body = {"input": [uri(served.pictures[0]), uri(served.pictures[1])], "labels": labels, "templates": templates}
    answer = post(served, "/v1/classify", body).json()["data"]
    weights = class_weights(served.encoder, labels, templates)
    expected = classify(served.encoder.encode_images(served.pictures[:2]), weights, served.encoder.logit_scale)
    for row, probabilities in zip(answer, expected, strict=True):
        assert [row["probabilities"][label] for label in labels] == pytest.approx(probabilities.tolist(), abs=1e-4)
        assert row["label"] == labels[int(probabilities.argmax())]


def test_a_body_over_the_limit_is_413_and_the_server_goes_on(served):
    answer = post(served, "/v1/embeddings", {"input": "x" * 2_100_000})
    assert answer.status_code == 413 and "at most 2,000,000" in answer.json()["error"]["message"]
    assert embed(served, "after").shape == (1, served.encoder.dimensions)


def test_overload_answers_429_with_retry_after_and_never_5xx(served):
    body = {"input": served.captions[:16]}
    with ThreadPoolExecutor(24) as callers:
        answers = list(callers.map(lambda _: post(served, "/v1/embeddings", body), range(120)))
    codes = {answer.status_code for answer in answers}
    assert codes == {200, 429}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert all(answer.json()["error"]["type"] == "rate_limit_error" for answer in refused)
    good = [answer.json()["data"] for answer in answers if answer.status_code == 200]
    expected = served.encoder.encode_text(body["input"])
    assert all(np.abs(np.array([row["embedding"] for row in data]) - expected).max() < 1e-5 for data in good)
    assert embed(served, "after").shape == (1, served.encoder.dimensions)


def test_the_ingress_keeps_no_memory_of_pictures(served):
    def ingress_bytes() -> int:
        return int(Path(f"/proc/{one_process('Ingress')}/statm").read_text().split()[1])

    noise = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")  # 180 kB
    body = {"input": uri(stream.getvalue())}
    with httpx.Client(base_url=served.url, timeout=60) as client, ThreadPoolExecutor(8) as callers:

        def ask(_: int) -> int:
            return client.post("/v1/embeddings", json=body).status_code

        assert set(callers.map(ask, range(100))) == {200}
        before = ingress_bytes()
        assert set(callers.map(ask, range(500))) == {200}
    assert ingress_bytes() < before * 1.05  # 500 images are 90 MB, a third of the process


def test_what_the_workflow_asks_is_answered_by_the_very_figures(served):
    lines = list(stage.ask(served.url, served.index))
    assert sum("the very figure" in line for line in lines) >= 1
    assert any(line.startswith("the image of PMC") for line in lines)
    assert any("-> 128 numbers" in line for line in lines)


def test_an_index_of_another_bundle_is_refused_before_it_serves(served, tmp_path):
    from biomedclip_ray.serve.replica import Engine

    bundle, _, encoder = make(tmp_path, 1, served.pictures, served.captions)
    index_uri = served.index.place.at("index.lance").uri
    with pytest.raises(ConfigError, match=rf"{served.encoder.bundle_id}.*{encoder.bundle_id}"):
        Engine(bundle.place.at("bundle").uri, index_uri, Serve())


def with_resources(config: Config, **changed: Any) -> Config:
    resources = config.serve.resources.model_copy(update=changed)
    return config.model_copy(update={"serve": config.serve.model_copy(update={"resources": resources})})


def cut_weights(bundle: Product) -> str:
    """Leave half of a bundle's weights; returns the file's name."""
    file = Path(bundle.place.at("bundle").uri) / WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file.name


def nan_weights(bundle: Product) -> None:
    """A model that gives no finite vector, in a bundle that is whole otherwise."""
    folder = Path(bundle.place.at("bundle").uri)
    state = {
        name: tensor * float("nan") if "proj" in name else tensor
        for name, tensor in load_file(folder / WEIGHTS).items()
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "bundle.json").unlink()  # it holds the hash of the weights that were


@pytest.mark.timeout(900)  # Serve tries a replica that fails three times, twice here, beside callers
def test_a_deploy_that_fails_leaves_what_served_before_and_names_the_file(served, tmp_path):
    before = httpx.get(f"{served.url}/v1/models").json()["data"][0]
    broken, index, _ = make(tmp_path, 7, served.pictures, served.captions)
    name = cut_weights(broken)
    stricter = served.config.serve.model_copy(update={"max_items": 3})  # settings of a failed deploy hold for nobody
    config = served.config.model_copy(update={"serve": stricter})
    hurried = with_resources(config, timeout_s=1e-4)  # does not wait until what serves says how it was started
    with httpx.Client(base_url=served.url, timeout=60) as client, ThreadPoolExecutor(2) as others:
        answers: list[str] = []
        working = True

        def ask() -> None:
            while working:
                answer = client.post("/v1/embeddings", json={"input": ["cells"] * 5})
                answers.append("200" if answer.status_code == 200 else answer.text)
                time.sleep(0.05)  # what starts beside it needs the cores too

        callers = [others.submit(ask) for _ in range(2)]
        try:
            for settings, what in ((config, "is served on"), (hurried, "is served on .*deploy again")):
                with pytest.raises(stage.DeployError, match=rf"{name}.*{what}"):
                    stage.deploy(settings, broken, index)  # the same command again is not skipped
        finally:
            working = False
        for caller in callers:
            caller.result()
    assert set(answers) == {"200"}
    after = httpx.get(f"{served.url}/v1/models").json()["data"][0]
    assert (after["bundle"], after["application"]) == (before["bundle"], before["application"])
    assert (after["limits"], before["limits"]["items"]) == (before["limits"], 256)
    assert [stage.deploy(served.config, served.bundle, served.index).state for _ in range(2)] == ["ran", "skipped"]


@pytest.mark.timeout(600)
def test_weights_that_give_no_finite_vector_are_never_deployed(served, tmp_path):
    broken, index, _ = make(tmp_path, 8, served.pictures, served.captions)
    nan_weights(broken)
    with pytest.raises(stage.DeployError, match=r"not finite|made by bundle"):
        stage.deploy(served.config, broken, index)
    assert np.abs(embed(served, "cells") - served.encoder.encode_text(["cells"])).max() < 1e-5


def one_process(replica: str) -> int:
    """The process of the one live replica, when those of an earlier deployment have ended."""
    deadline = time.monotonic() + 120
    while True:
        found = of_ours(os.getpid(), f"ray::ServeReplica:biomedclip:{replica}")
        if len(found) == 1:
            return found[0]
        assert time.monotonic() < deadline, f"{replica}: {found}"
        time.sleep(0.2)


def test_an_engine_that_is_stopped_is_not_ready_and_answers_503_at_once_until_it_goes_on(served):
    resources = served.config.serve.resources
    pid = one_process("Engine")
    os.kill(pid, signal.SIGSTOP)
    try:
        assert post(served, "/v1/embeddings", {"input": "cells"}).status_code == 503  # once it has been silent so long
        for path in ("/v1/embeddings", "/v1/search"):
            began = time.monotonic()
            answer = post(served, path, {"input" if "emb" in path else "query": "cells"})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"]["type"] == "server_error"
            assert time.monotonic() - began < 5  # at once: the bound is for a busy machine
        # looked at until it says so: on a busy machine Serve may replace the engine before a look at a fixed time
        deadline = time.monotonic() + 10 * resources.ready_within_s
        while (ready := httpx.get(f"{served.url}/ready", timeout=30).status_code) != 503:
            assert time.monotonic() < deadline, ready
            time.sleep(0.1)
        assert httpx.get(f"{served.url}/health", timeout=30).status_code == 200
    finally:
        os.kill(pid, signal.SIGCONT)
    for _ in range(100):
        if httpx.get(f"{served.url}/ready", timeout=30).status_code == 200:
            break
        time.sleep(0.2)
    assert embed(served, "after").shape == (1, served.encoder.dimensions)


def test_an_engine_that_is_killed_gives_503_and_never_a_wait_until_it_is_back(served):
    os.kill(one_process("Engine"), signal.SIGKILL)
    seen: list[tuple[int, float]] = []
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        began = time.monotonic()
        answer = post(served, "/v1/embeddings", {"input": "cells"})
        seen.append((answer.status_code, time.monotonic() - began))
        if answer.status_code == 200 and any(code == 503 for code, _ in seen):
            break
        time.sleep(0.1)
    assert {code for code, _ in seen} == {200, 503} and seen[-1][0] == 200
    assert max(seconds for code, seconds in seen if code == 503) < 10
    assert np.abs(embed(served, "cells") - served.encoder.encode_text(["cells"])).max() < 1e-5


def test_every_answer_carries_the_requests_id(served):
    given = httpx.get(f"{served.url}/v1/nothing", headers={"X-Request-ID": "mine-1"})
    assert (given.status_code, given.headers.get_list("x-request-id")) == (404, ["mine-1"])
    assert len(httpx.get(f"{served.url}/health").headers.get_list("x-request-id")) == 1


def test_the_numbers_tell_what_was_asked(served):
    counted = re.compile(r'biomedclip_requests_total\{key="none",route="/v1/embeddings",status="200"\} [1-9]')
    deadline = time.monotonic() + 60
    while True:  # an answer is counted when it has been sent, and an ingress that is being replaced may have counted it
        embed(served, ["cells"] * 3)
        if counted.search(text := httpx.get(f"{served.url}/metrics").text):
            break
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    assert f'bundle="{served.encoder.bundle_id}"' in text or "biomedclip_model_info" in text


def test_too_few_cpus_are_an_error_that_names_the_key_and_not_a_wait_for_ever(served):
    with pytest.raises(ConfigError, match=r"serve\.resources\.cpus_per_replica"):
        stage.deploy(with_resources(served.config, cpus_per_replica=64.0), served.bundle, served.index)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "this test drives a real browser: apt-get install chromium (.ci/run does)"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """A page that notes what it asks for and what goes wrong."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(15_000)
    opened.complaints, opened.asked = [], []
    opened.on("console", lambda message: opened.complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    yield opened
    context.close()


def cards(page: Any) -> Any:
    return page.locator(".card:not(.ghost)")


def test_a_reader_searches_by_words_and_sees_figures_with_captions_links_and_licences(page, served):
    page.goto(served.url)
    page.get_by_label("What should the figure show?").fill("stained cells")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card:not(.ghost)")
    assert cards(page).count() == 24
    first = cards(page).first
    assert "<b>no." in first.locator(".caption").inner_text()  # markup in a caption is shown as text
    assert first.locator(".article").get_attribute("href").startswith("https://pmc.ncbi.nlm.nih.gov/articles/PMC")
    assert "CC" in first.locator(".tags").inner_text()
    assert page.evaluate("document.querySelector('.card img').naturalWidth") == 160  # the thumbnail passes the policy
    assert page.complaints == []
    assert all(url.startswith((served.url, "data:")) for url in page.asked)


def test_a_reader_searches_by_a_picture_and_by_similar_figures(page, served, tmp_path):
    picture = tmp_path / "mine.png"
    picture.write_bytes(served.pictures[23])
    page.goto(served.url)
    page.get_by_label("Search by a picture").set_input_files(picture)
    page.wait_for_selector(".card:not(.ghost)")
    assert cards(page).first.locator(".score").inner_text() == "1.000"
    assert "no. 23" in cards(page).first.locator(".caption").inner_text()
    page.get_by_label("Remove the picture").click()
    page.wait_for_selector("text=What are you looking for?")
    assert page.complaints == []


def test_filters_narrow_the_answer_and_the_address_brings_it_back(page, served):
    page.goto(f"{served.url}/?q=cells")
    page.wait_for_selector(".card:not(.ghost)")
    page.locator(".kinds label", has_text="bar chart").click()
    expect(cards(page)).to_have_count(20)
    assert set(cards(page).locator(".kind").all_inner_texts()) == {"bar chart"}
    assert "kind=bar_chart" in page.url
    page.reload()
    expect(cards(page)).to_have_count(20)
    page.get_by_label("From year").fill("2031")
    page.keyboard.press("Tab")
    page.wait_for_selector("text=No figure passes these filters.")
    page.get_by_role("button", name="Clear the filters").click()
    expect(cards(page)).to_have_count(24)
    assert page.complaints == []


def test_waiting_and_failing_are_shown_and_can_be_tried_again(page, served):
    held = []
    page.route("**/v1/search", lambda route: held.append(route))
    page.goto(f"{served.url}/?q=cells")
    page.wait_for_selector(".ghost")
    while not held:
        page.wait_for_timeout(20)
    held[0].fulfill(status=400, body='{"error": {"message": "a clear reason"}}')
    page.wait_for_selector("[role=alert] >> text=a clear reason")
    page.unroute("**/v1/search")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".card:not(.ghost)")
    expect(page.locator("[role=alert]:visible")).to_have_count(0)
    assert len(held) == 1


def test_a_narrow_screen_needs_no_sideways_scrolling(browser, served):
    context = browser.new_context(viewport={"width": 360, "height": 700}, color_scheme="dark")
    page = context.new_page()
    page.goto(f"{served.url}/?q=cells")
    page.wait_for_selector(".card:not(.ghost)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in dark.removeprefix("rgb(").rstrip(")").split(", ")) < 120
    context.close()


def test_another_bundle_comes_up_beside_the_old_one_and_no_request_fails(served, tmp_path):
    bundle, index, encoder = make(tmp_path, 2, served.pictures, served.captions)
    seen: list[tuple[int, str | None]] = []
    with httpx.Client(base_url=served.url, timeout=60) as client, ThreadPoolExecutor(3) as others:
        working = True

        def search() -> None:
            while working:
                answer = client.post("/v1/search", json={"query": "cells", "k": 1})
                seen.append((answer.status_code, answer.json().get("bundle")))

        callers = [others.submit(search) for _ in range(2)]
        try:
            assert stage.deploy(served.config, bundle, index).state == "ran"
            time.sleep(0.5)
        finally:
            working = False
        for caller in callers:
            caller.result()
    assert {status for status, _ in seen} == {200}
    assert {name for _, name in seen} == {served.encoder.bundle_id, encoder.bundle_id}
    assert httpx.get(f"{served.url}/ready").json()["bundle"] == encoder.bundle_id
    assert np.abs(embed(served, "cells") - encoder.encode_text(["cells"])).max() < 1e-5
