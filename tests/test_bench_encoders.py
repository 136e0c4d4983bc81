"""Laws of the encoder's benchmark: it runs whole, its figures are of what they say, and it needs no Kafka."""

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_sentence_bert

from bench import encoders, models, roofline, tweets
from encoders import load_encoder
from encoders.cost import model_cost

ROOT = Path(__file__).resolve().parents[1]
NUMBER = r"[\d,]+"
SHARE = r"-?\d+(?:\.\d+)?%"
PEERS = ("sentence_transformers", "onnx", "onnxruntime", "onnxscript", "openvino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny sentence-transformers model that takes 24 tokens."""
    return save_sentence_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tweets_folder(tmp_path):
    """Tweets of one to six words."""
    (tmp_path / "some").mkdir()
    words = ["the", "quick", "brown", "fox", "jumps", "over"]
    lines = [" ".join(words[: 1 + number % 6]) + f" {number}" for number in range(120)]
    (tmp_path / "some" / "train_text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def run(capsys, monkeypatch, *arguments):
    """The benchmark's lines, with trials of the peak too short and small to mean much."""
    monkeypatch.setattr(roofline, "TRIAL_S", 0.001)
    monkeypatch.setattr(roofline, "SQUARES", {"cpu": (64,)})
    encoders.main([*map(str, arguments), "--device", "cpu"])
    return capsys.readouterr().out.splitlines()


def rows(lines, head):
    """A table's rows by their names; cells stand two spaces or more apart."""
    start = next(index for index, line in enumerate(lines) if re.match(rf"{head}  ", line))
    width = len(re.split(r" {2,}", lines[start]))
    found = {}
    for line in lines[start + 1 :]:
        name, *cells = re.split(r" {2,}", line)
        if len(cells) + 1 != width:
            break
        found[name] = cells
    return found


def test_the_whole_benchmark(capsys, monkeypatch, folder, tweets_folder):
    """Machine, sides with the same vectors, lengths, policies and host costs, in each dtype; the target comes last."""
    options = ("--model", folder, "--tweets", tweets_folder, "--texts", 40, "--repeats", 2)
    lines = run(capsys, monkeypatch, *options, "--dtype", "float32", "bfloat16")
    assert re.search(rf"cores of .*torch {re.escape(version('torch'))}.*sentence-transformers \d", lines[0])
    sides = rows(lines, "side")
    first = ["ours", "ours, one window", "ours, ONNX Runtime", "ours, OpenVINO"]
    assert list(sides)[:5] == [*first, "sentence-transformers 32 as they come"]
    for runs, best, median, tokens, of_ours, least, mean, _ in sides.values():
        assert int(runs) in (1, 2)
        assert int(best.replace(",", "")) >= int(median.replace(",", "")) > 0
        assert int(tokens.replace(",", "")) > 0
        assert float(of_ours) > 0
        assert 0.9999 < float(least) <= float(mean) < 1.0001
    assert sides["ours"][-1] == "0.0%"
    assert any(re.fullmatch(rf"peak: {NUMBER} GFLOP/s \(.*\)", line) for line in lines)
    assert any(re.fullmatch(rf"ours: \S+ GFLOP a text, {NUMBER} GFLOP/s, {SHARE} of the peak", line) for line in lines)
    lengths = rows(lines, "tokens")
    assert set(lengths) == {"1-8", "9-16", "17-32"}
    assert "not measured: 33-64, 65-128, 129-256, 257-512 tokens: texts are cut at 24" in lines
    policies = rows(lines, "batch_tokens")
    budgets = encoders.POLICIES["cpu"]
    assert {f"{kind} {budget}" for kind in ("packed", "padded") for budget in budgets} <= set(policies)
    assert {policies[f"packed {budget}"][-1] for budget in budgets} == {"0.0%"}
    assert policies["padded 8192"][-1] != "0.0%"
    assert {"default", "windows of 100 posts"} <= set(policies)
    assert sum(bool(re.match(r"host: tokenising \S+ us a text, packing \S+ us a text", line)) for line in lines) == 2
    for line, dtype in zip(lines[-2:], ("float32", "bfloat16"), strict=True):
        told = r"[\d.]+ by the best of runs, [\d.]+ by the median of \d pairs"
        best = rf"{dtype}: beside the best peer \((?!ours).*\)"
        assert re.fullmatch(rf"{best}: ours {told}; ours, one window {told}", line)


def test_a_peer_that_is_not_there_is_named(capsys, monkeypatch, folder, tmp_path):
    """Who cannot be measured has a line with what it wants, and absent tweets are not passed over in silence."""
    for name in PEERS:
        monkeypatch.setitem(sys.modules, name, None)
    lines = run(capsys, monkeypatch, "--model", folder, "--tweets", tmp_path, "--texts", 8, "--repeats", 1)
    left_out = [line for line in lines if line.startswith("not measured: ")]
    for told in (
        "sentence-transformers: pip install sentence-transformers",
        "ONNX Runtime: pip install onnxruntime onnx onnxscript",
        "OpenVINO: pip install openvino onnx onnxscript",
        "ours, ONNX Runtime: backend=onnxruntime needs onnxruntime "
        "(import of onnxruntime halted; None in sys.modules): pip install 'manyray[onnxruntime]'",
    ):
        assert f"not measured: {told}" in left_out
    assert any("--tei http://" in line for line in left_out)
    assert any("--infinity http://" in line for line in left_out)
    assert any(line.startswith("8 sample posts, as there are no tweets in") for line in lines)
    assert lines[-1] == "float32: beside the best peer: none was measured"


class Server(BaseHTTPRequestHandler):
    """Speaks as text-embeddings-inference, and as infinity but with each text's vector negated."""

    def do_POST(self):
        """Answer with vectors, those of infinity in another order."""
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        encoder = self.server.encoder
        texts = content["inputs" if self.path == "/embed" else "input"]
        vectors = encoder.encode(encoder.tokenise(texts), encoder.batch_tokens).vectors
        if self.path == "/embed":
            answer = vectors.tolist()
        else:
            data = [{"index": index, "embedding": (-row).tolist()} for index, row in enumerate(vectors)]
            answer = {"data": data[::-1]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


def test_servers_are_asked_in_their_own_form(capsys, monkeypatch, folder, tweets_folder):
    """Both are measured over HTTP, their rows keep their order, and who gives other vectors is never the best peer."""
    for name in PEERS:
        monkeypatch.setitem(sys.modules, name, None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.encoder = load_encoder(str(folder), device="cpu")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        options = ("--model", folder, "--tweets", tweets_folder, "--texts", 70, "--repeats", 1)
        lines = run(capsys, monkeypatch, *options, "--tei", url, "--infinity", url)
        server.shutdown()
    sides = rows(lines, "side")
    assert sides["text-embeddings-inference"][5:] == ["1.000000", "1.000000", "-"]
    assert sides["infinity"][5:] == ["-1.000000", "-1.000000", "-"]
    assert "beside the best peer (text-embeddings-inference)" in lines[-1]


def test_it_needs_torch_and_transformers_alone(folder, tmp_path):
    """A machine with nothing of Kafka's and nothing of the pipeline's runs it: there is nothing of it to import."""
    banned = ["confluent_kafka", "aiokafka", "faust", "google.protobuf", "rich", "psutil", "streams", "manyray"]
    banned += ["rocksdict", "pydantic", "typer", "prometheus_client", "msgspec", *PEERS]
    arguments = ["--model", str(folder), "--tweets", str(tmp_path), "--texts", "8", "--repeats", "1", "--device", "cpu"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({banned}))\n"
        "from bench import encoders, models, roofline\n"
        f"roofline.TRIAL_S = 0.001; roofline.SQUARES = {{'cpu': (64,)}}; encoders.main({arguments})"
    )
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert "beside the best peer: none was measured" in found.stdout


def test_posts_are_drawn_alike(tweets_folder):
    """Equal seeds draw equal posts; more posts than there are come, some of them twice."""
    assert tweets.draw_posts(tweets_folder, 30) == tweets.draw_posts(tweets_folder, 30)
    assert tweets.draw_posts(tweets_folder, 30) != tweets.draw_posts(tweets_folder, 30, seed=2)
    assert len(set(tweets.draw_posts(tweets_folder, 120).texts)) == 120
    assert len(tweets.draw_posts(tweets_folder, 500).texts) == 500


@pytest.mark.parametrize(("least", "most"), [(1, 8), (9, 16), (17, 24)])
def test_texts_have_the_lengths_asked_for(folder, least, most):
    """Where posts are of another length, their words make texts that have it, and enough of them."""
    encoder = load_encoder(str(folder), device="cpu")

    def lengths_of(texts):
        return encoder.tokenise(texts).lengths

    lengths = lengths_of(tweets.texts_between(least, most, 300, ["the fox jumps"] * 200, lengths_of))
    assert least <= lengths.min() <= lengths.max() <= most
    assert 300 <= lengths.sum() < 300 + most


def test_random_models_have_the_size_of_their_names(tmp_path):
    """random:minilm is loaded as the carried model is, and has as many weights where work is."""
    spec, folder = tweets.find_model("random:minilm", tmp_path)
    carried = tweets.find_model("minilm", tmp_path)[1]
    assert model_cost(folder) == model_cost(carried)
    assert tweets.load(spec, "cpu", "float32").max_tokens == 512
    with pytest.raises(SystemExit, match="random:xlm-r-large"):
        tweets.find_model("random:other", tmp_path)
    with pytest.raises(SystemExit, match="computes no layers"):
        tweets.find_model("hash", tmp_path)


def test_a_side_far_behind_runs_twice(monkeypatch):
    """Sides take turns, every other time in the opposite order; who is too slow twice, not once, is left out then."""
    ran = []
    monkeypatch.setattr(encoders, "perf_counter", lambda: float(sum(seconds for _, seconds in ran)))

    def side(name, *seconds):
        left = list(seconds)

        def run():
            ran.append((name, left.pop(0)))
            return encoders.Answer(np.zeros((1, 1), np.float32))

        return run

    sides = {"one": side("one", 2.0, 2.0, 2.0), "slow": side("slow", 7.0, 8.0), "odd": side("odd", 9.0, 3.0, 3.0)}
    measured = encoders.take_turns(sides, 3, patience=3.0)
    assert [name for name, _ in ran] == ["one", "slow", "odd", "odd", "slow", "one", "one", "odd"]
    assert [one.seconds for one in measured.values()] == [[2.0] * 3, [7.0, 8.0], [9.0, 3.0, 3.0]]


def test_a_model_has_a_row_of_what_it_costs():
    """Its type, files, FLOPs, speeds and memory, under the heads of the table."""
    model, *cells = models.measure("minilm", "cpu", "float32", ["the quick fox"] * 8, repeats=1)
    told = dict(zip(models.HEADS, cells, strict=True))
    assert (model, told["type"], told["weight files"]) == ("minilm", "float32", "87 MiB")
    assert float(told["GFLOP a text"]) == pytest.approx(2 * 10_616_832 * 5 / 1e9, rel=0.01)
    assert float(told["texts/s best"].replace(",", "")) > 0
    assert float(told["memory"].removesuffix(" MiB").replace(",", "")) > 87
