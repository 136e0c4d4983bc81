"""Tiny models with their exported graphs: fixtures of who asks for them (`pytest_plugins`)."""

import pytest
import torch
from test_encoders_families import save_family

from encoders.export import export_graph
from encoders.transformer import load_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A family's folder and its graph, made once."""
    made = {}

    def export(family):
        if family not in made:
            folder = save_family(tmp_path_factory.mktemp(family) / "model", family)
            graph = folder.with_suffix(".onnx")
            export_graph(load_model(folder, torch.float32), graph)
            made[family] = (folder, graph)
        return made[family]

    return export


@pytest.fixture
def bert(exported):
    """The choices of a tiny BERT with a graph, but the backend."""
    folder, graph = exported("Bert")
    return {"model": str(folder), "graph": str(graph)}
