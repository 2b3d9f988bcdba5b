"""vLLM inside objects of kinds that no reader knows, images of other names, and patches.

By hand, in the shapes of public files: ai-dynamo/dynamo recipes/deepseek-r1/vllm/disagg, skypilot-org/skypilot
llm/vllm, llm-d guides/pd-disaggregation/modelserver/gpu/vllm/aws/patch-decode.yaml; values are our own.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from epdoctor.exceptions import UsageError
from epdoctor.launch.containers import image_version
from tests.launch.files import one, read, texts

DYNAMO = """
apiVersion: nvidia.com/v1alpha1
kind: DynamoGraphDeployment
metadata: {name: dsr1}
spec:
  services:
    Frontend:
      extraPodSpec:
        mainContainer: {image: nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.0}
    decode:
      multinode: {nodeCount: 2}
      extraPodSpec:
        mainContainer:
          image: nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.0
          env:
          - {name: GLOO_SOCKET_IFNAME, value: eth0}
          command: [python3, -m, dynamo.vllm]
          args:
          - --model
          - deepseek-ai/DeepSeek-R1
          - --data-parallel-hybrid-lb
          - --data-parallel-size
          - "16"
          - --enable-expert-parallel
          - --disaggregation-mode
          - decode
          - --enable-expert-paralel
"""


def test_a_front_end_around_the_engine(tmp_path: Path) -> None:
    server = one(tmp_path, DYNAMO, name="deploy.yaml")
    assert (server.name, server.front_end) == ("DynamoGraphDeployment/dsr1 decode", "dynamo.vllm")
    assert server.number("data-parallel-size") == 16
    assert server.variable("GLOO_SOCKET_IFNAME") == "eth0"
    unknown = [option.written for option in server.options.values() if not option.known_to_vllm]
    assert unknown == ["--enable-expert-paralel"]
    assert server.options["enable-expert-paralel"].location.line == 26


SKY = """
resources: {accelerators: "H200:8"}
num_nodes: 2
envs:
  MODEL: deepseek-ai/DeepSeek-R1
description: Runs vllm serve on two nodes.
run: |
  HEAD=$(echo "$SKYPILOT_NODE_IPS" | head -n1)
  if [ "$SKYPILOT_NODE_RANK" == "0" ]; then
    vllm serve $MODEL --data-parallel-size 16 --data-parallel-size-local 8
  else
    vllm serve $MODEL --data-parallel-size 16 --data-parallel-size-local 8 --headless
  fi
"""


def test_a_text_for_a_shell_in_any_yaml(tmp_path: Path) -> None:
    found = read(tmp_path, SKY, name="task.yaml")
    assert [(server.location.line, server.on("headless")) for server in found.servers] == [
        (9, False),
        (11, True),
    ]
    assert {server.model.text for server in found.servers if server.model} == {"deepseek-ai/DeepSeek-R1"}


SPLIT = """
deployment:
  - server_cmd: >
      vllm serve m
        --data-parallel-size 2
        --kv-transfer-config
        '{"kv_connector": "NixlConnector",
          "kv_role": "kv_producer"}'
  - command: [sh, -c, "vllm serve m\\n  --data-parallel-size 2\\n"]
"""


def test_a_text_that_its_reader_splits_is_one_command(tmp_path: Path) -> None:
    found = read(tmp_path, SPLIT, name="cases.yaml")
    first, second = found.servers
    assert list(first.options) == ["data-parallel-size", "kv-transfer-config"]
    assert "kv_producer" in first.text("kv-transfer-config")
    assert first.options["data-parallel-size"].location.line == 4
    # A shell ends the second one at its first line; what was meant is read, and the cut is reported.
    assert second.number("data-parallel-size") == 2
    (note,) = found.trouble
    assert "no backslash" in note.found


@pytest.mark.parametrize(
    "text",
    [
        "about: |\n  Then type vllm serve MODEL and wait.\n",
        "guide: |\n  vllm serve MODEL --tensor-parallel-size 8\n",
        "notes: |\n  ```bash\n  vllm serve MODEL\n  ```\n",
    ],
)
def test_prose_that_names_vllm_starts_nothing(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="starts vLLM"):
        read(tmp_path, text, name="about.yaml")


POD = """
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers:
  - name: proxy
    image: ghcr.io/llm-d/llm-d-routing-sidecar:v0.7.0
    args: [--port=8000, --vllm-port=8200, --data-parallel-size=8]
  - name: modelserver
    image: registry.example.com/ai/serving:1.2
    args: [--model=m, --tensor-parallel-size=8, --enable-expert-parallel]
"""


def test_arguments_say_whose_they_are_where_the_image_does_not(tmp_path: Path) -> None:
    server = one(tmp_path, POD, name="pod.yaml")
    assert texts(server) == {"model": "m", "tensor-parallel-size": "8", "enable-expert-parallel": ""}
    assert server.pod is not None
    assert not server.pod.partial


PATCH = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: decode}
spec:
  template:
    spec:
      containers:
      - name: modelserver
        args: ["vllm serve m --tensor-parallel-size 4"]
        command: [/bin/sh, -c]
        resources: {limits: {nvidia.com/gpu: "4"}}
"""


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("vllm/vllm-openai:v0.33.0", "0.33.0"),
        ("vllm/vllm-openai:v0.20.0-ubuntu2404@sha256:46da022c", "0.20.0"),
        ("registry:5000/aibrix/vllm-openai:lmcache-v0.8.5-20250418", "0.8.5"),
        ("aibrix/vllm-openai:v0.10.2-aibrix-v0.5.0-nixl-0.7.1", "0.10.2"),
        ("rocm/vllm:rocm6.4.1_vllm_0.9.1_20250702", "0.9.1"),
        ("quay.io/ascend/vllm-ascend:v0.11.0rc1", "0.11.0"),
        ("nvcr.io/nvidia/vllm:25.09-py3", ""),
        ("nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.0", ""),
        ("vllm/vllm-openai:latest", ""),
        ("ghcr.io/llm-d/llm-d-cuda:v0.3.1", ""),
    ],
)
def test_which_vllm_an_image_holds(image: str, version: str) -> None:
    assert image_version(image) == version


def test_a_patch_is_not_a_whole_pod(tmp_path: Path) -> None:
    found = read(tmp_path, PATCH, name="patch.yaml")
    (server,) = found.servers
    assert server.pod is not None
    assert server.pod.partial
    assert server.pod.place("gpus").line == 11
    assert server.pod.place("shm") == server.pod.location
    (note,) = found.trouble
    assert "names no image" in note.found
