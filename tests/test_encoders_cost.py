"""Laws of what texts cost: FLOPs are those of the tokens there are, whatever the batches."""

import numpy as np
import pytest
import torch
import transformers
from test_encoders_families import FAMILIES, save_family
from tiny_models import TEXTS, save_bert
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from encoders import Engine, load_encoder
from encoders.cost import model_cost


def lengths(*tokens):
    """As `Tokens` has them."""
    return np.array(tokens, np.int32)


def test_flops_are_those_of_the_layers(tmp_path):
    """Two a weight and token of every linear layer but the pooler's, and attention by the square of a text's length."""
    cost = model_cost(save_bert(tmp_path))
    linear = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert (cost.linear_parameters, cost.query_dims, cost.hidden, cost.intermediate) == (linear, 2 * 32, 32, 64)
    assert cost.flops(lengths(3, 5)) == 2 * linear * 8 + 4 * 2 * 32 * (9 + 25)
    assert cost.flops(lengths()) == 0


@pytest.mark.parametrize(
    ("family", "changed"),
    [*((family, {}) for family in FAMILIES if family != "DebertaV2"), ("Qwen3", {"head_dim": 24})],
)
def test_flops_are_those_that_torch_counts(tmp_path, family, changed):
    """Of each family, by what more tokens cost; DeBERTa's positions are computed on top, and are not counted."""
    config = getattr(transformers, family + "Config")(**FAMILIES[family][0] | changed)
    config.save_pretrained(tmp_path)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    counted = []
    for tokens in (12, 30):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(input_ids=torch.full((1, tokens), 7))
        counted.append(counter.get_total_flops())
    cost = model_cost(tmp_path)
    # What both runs have, as the pooler's product, is in neither difference; the angles of rotary positions are in one.
    assert cost.flops(lengths(30)) - cost.flops(lengths(12)) == pytest.approx(counted[1] - counted[0], rel=1e-3)


@pytest.mark.parametrize("family", ["Bert", "MPNet"])
def test_a_batch_says_the_flops_of_its_tokens(tmp_path, family):
    """The formula of the lengths of its texts: padding, windows and batches change nothing, and parts add up."""
    encoder = load_encoder(str(save_family(tmp_path, family)), device="cpu")
    expected = model_cost(tmp_path).flops(encoder.tokenise(TEXTS).lengths)
    assert expected > 0
    for batch_tokens in (64, 4_096):
        encoded = encoder.encode(encoder.tokenise(TEXTS), batch_tokens)
        assert encoded.flops == expected
        assert (encoded.padded_tokens > encoded.tokens) == (family == "MPNet")
    with Engine(encoder, 64) as engine:
        parts = [engine.submit(part) for part in (TEXTS[:3], [], TEXTS[3:])]
        assert sum(part.result(20).flops for part in parts) == expected


def test_the_hash_encoder_computes_no_layers():
    """Nothing is multiplied, so nothing is counted."""
    plain = load_encoder("hash:16")
    assert plain.encode(plain.tokenise(TEXTS), 64).flops == 0
