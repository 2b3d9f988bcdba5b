"""Kubernetes manifests and compose files: a server a pod, its words as the container gets them, with their lines."""

from __future__ import annotations

from pathlib import Path

from tests.launch.files import one, read, texts

LWS = """
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata: {name: decode, namespace: llm}
spec:
  replicas: 2
  leaderWorkerTemplate:
    size: 2
    workerTemplate:
      spec:
        volumes:
          - name: dshm
            emptyDir: {medium: Memory, sizeLimit: 2Gi}
        containers:
          - name: vllm
            image: vllm/vllm-openai:v0.33.0
            securityContext:
              capabilities:
                add: [IPC_LOCK, SYS_RAWIO]
            command: ["/bin/bash", "-c"]
            args:
              - |-
                # one rank a GPU
                START_RANK=$(( ${LWS_WORKER_INDEX:-0} * DP_SIZE_LOCAL ))
                ROLE=""
                if [ "${LWS_WORKER_INDEX:-0}" -gt 0 ]; then ROLE="--headless"; fi
                SPEC="--speculative-config {\\"method\\":\\"mtp\\",\\"num_speculative_tokens\\":${SPEC_TOKENS}}"
                UTIL=$(python3 -c "
                print(round(0.95 - 0.07, 2))
                " 2>/dev/null || echo "")
                exec vllm serve $SPEC \\
                  deepseek-ai/DeepSeek-R1-0528 \\
                  --data-parallel-size $((LWS_GROUP_SIZE * DP_SIZE_LOCAL)) \\
                  --data-parallel-size-local $DP_SIZE_LOCAL \\
                  --data-parallel-address ${LWS_LEADER_ADDRESS} \\
                  --data-parallel-start-rank $START_RANK $ROLE \\
                  --gpu-memory-utilization $UTIL \\
                  --kv_transfer_config '{"kv_connector":"NixlConnector",
                                          "kv_role":"kv_both"}' \\
                  ${BYTES:+--kv-cache-memory-bytes=$BYTES}
            env:
              - {name: DP_SIZE_LOCAL, value: "8"}
              - {name: SPEC_TOKENS, value: "3"}
              - name: POD_IP
                valueFrom: {fieldRef: {fieldPath: status.podIP}}
              - {name: VLLM_NIXL_SIDE_CHANNEL_HOST, value: $(POD_IP)}
            resources:
              limits: {nvidia.com/gpu: 8, rdma/ib: 1, memory: 512Gi}
            livenessProbe: {httpGet: {path: /health, port: 8200}, failureThreshold: 3}
            volumeMounts: [{name: dshm, mountPath: /dev/shm}]
"""


def test_a_leader_worker_set_is_a_server_a_pod(tmp_path: Path) -> None:
    found = read(tmp_path, LWS, name="lws.yaml")
    assert not found.trouble
    leader, worker = found.servers
    assert [server.name for server in found.servers] == [
        "LeaderWorkerSet/decode leader", "LeaderWorkerSet/decode worker 1",
    ]  # fmt: skip
    assert (leader.index, worker.index, leader.group.partition(" ")[0], worker.group.partition(" ")[0]) == (
        0, 1, "LeaderWorkerSet/decode", "LeaderWorkerSet/decode",
    )  # fmt: skip
    assert leader.model is not None
    assert leader.model.text == "deepseek-ai/DeepSeek-R1-0528"
    assert [server.number("data-parallel-start-rank") for server in found.servers] == [0, 8]
    assert [server.on("headless") for server in found.servers] == [False, True]
    assert [server.number("data-parallel-size") for server in found.servers] == [16, 16]
    assert leader.text("speculative-config") == '{"method":"mtp","num_speculative_tokens":3}'
    assert leader.text("kv-transfer-config").replace("\n", "").replace(" ", "") == (
        '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'
    )
    assert "kv-cache-memory-bytes" not in leader.options
    assert leader.options["data-parallel-address"].value.runtime
    assert leader.options["gpu-memory-utilization"].value.runtime.startswith("python3 -c")
    assert leader.environment["VLLM_NIXL_SIDE_CHANNEL_HOST"].runtime == "pod IP"
    assert (leader.vllm_version, leader.visible_gpus) == ("0.33.0", 8)
    lines = LWS.lstrip("\n").split("\n")
    for option in leader.options.values():
        line = lines[option.location.line - 1]
        if option.name not in ("speculative-config", "data-parallel-address", "gpu-memory-utilization"):
            assert option.written in line, (option.written, line)
    assert lines[leader.location.line - 1].lstrip().startswith("exec vllm")


def test_what_the_pod_grants(tmp_path: Path) -> None:
    pod = read(tmp_path, LWS, name="lws.yaml").servers[0].pod
    assert pod is not None
    assert (pod.kind, pod.name, pod.container, pod.replicas, pod.group_size) == (
        "LeaderWorkerSet", "decode", "vllm", 2, 2,
    )  # fmt: skip
    assert (pod.gpus, pod.limits["rdma/ib"], pod.capabilities) == (8, "1", ("IPC_LOCK", "SYS_RAWIO"))
    assert (pod.shm_mounted, pod.shm_bytes, pod.privileged, pod.host_network) == (True, 2 << 30, False, False)
    assert pod.probes["liveness"]["failureThreshold"] == 3
    assert pod.raw["containers"][0]["image"] == "vllm/vllm-openai:v0.33.0"


def test_leader_and_workers_of_their_own_and_a_size_left_open(tmp_path: Path) -> None:
    text = """
    apiVersion: leaderworkerset.x-k8s.io/v1
    kind: LeaderWorkerSet
    metadata: {name: a}
    spec:
      leaderWorkerTemplate:
        size: %s
        leaderTemplate: {spec: {containers: [{name: v, command: [vllm, serve, m, --port, "8000"]}]}}
        workerTemplate:
          spec:
            containers: [{name: v, command: [sh, -c, "vllm serve m --node-rank $LWS_WORKER_INDEX"]}]
    """
    found = read(tmp_path, text % "3", name="a.yaml")
    assert [texts(server) for server in found.servers] == [
        {"port": "8000"},
        {"node-rank": "1"},
        {"node-rank": "2"},
    ]
    opened = read(tmp_path, text % "${SIZE}", name="b.yaml")
    assert "not filled in" in opened.trouble[0].found
    assert opened.servers[0].index is None


def test_sets_inside_other_kinds(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        kind: DisaggregatedSet
        apiVersion: disaggregatedset.x-k8s.io/v1
        metadata: {name: pd}
        spec:
          roles:
          - name: prefill
            spec: {replicas: 1, leaderWorkerTemplate: {size: 2, workerTemplate: &w {spec: {containers: [
              {name: v, command: [vllm, serve, m], args: [--node-rank, $(LWS_WORKER_INDEX), --x=$(NO)]}]}}}}
          - name: decode
            spec: {leaderWorkerTemplate: {size: 1, workerTemplate: *w}}
        """,
        name="pd.yaml",
    )
    assert [(s.group.partition(" ")[0], s.text("node-rank")) for s in found.servers] == [
        ("DisaggregatedSet/pd-prefill", "0"), ("DisaggregatedSet/pd-prefill", "1"), ("DisaggregatedSet/pd-decode", "0"),
    ]  # fmt: skip
    assert found.servers[0].options["x"].value.unresolved == ("NO",)


def test_several_documents_a_list_a_config_map_and_a_service(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        apiVersion: v1
        kind: List
        items:
        - apiVersion: v1
          kind: ConfigMap
          metadata: {name: ep}
          data:
            NCCL_IB_HCA: mlx5_0
            start.sh: |
              #!/bin/bash
              exec vllm serve m \\
                --port 8000
        - apiVersion: apps/v1
          kind: Deployment
          metadata: {name: one}
          spec:
            replicas: 3
            template:
              spec:
                hostNetwork: true
                containers:
                - name: v
                  image: registry.site/llm:1
                  command: [bash, /scripts/start.sh]
                  envFrom: [{configMapRef: {name: ep}}]
                  env:
                  - {name: NVSHMEM_HCA_LIST, valueFrom: {configMapKeyRef: {name: ep, key: NCCL_IB_HCA}}}
                  - {name: GONE, valueFrom: {configMapKeyRef: {name: none, key: x}}}
                  - {name: TOKEN, valueFrom: {secretKeyRef: {name: hf, key: t}}}
        ---
        apiVersion: v1
        kind: Service
        metadata: {name: vllm, namespace: x}
        spec: {clusterIP: None, publishNotReadyAddresses: false}
        """,
        name="all.yaml",
    )
    (server,) = found.servers
    assert (server.name, server.text("port"), server.pod and server.pod.replicas) == (
        "Deployment/one",
        "8000",
        3,
    )
    assert str(server.location) == f"{tmp_path}/all.yaml:11:12"
    assert server.variable("NCCL_IB_HCA") == server.variable("NVSHMEM_HCA_LIST") == "mlx5_0"
    assert server.environment["GONE"].unresolved == ("GONE",)
    assert server.environment["TOKEN"].runtime == "secret hf"
    assert [(r.kind, r.name, r.namespace) for r in found.resources] == [
        ("ConfigMap", "ep", ""),
        ("Service", "vllm", "x"),
    ]
    assert found.resources[1].raw["spec"]["publishNotReadyAddresses"] is False


def test_pods_that_count_themselves(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        apiVersion: apps/v1
        kind: StatefulSet
        metadata: {name: ep}
        spec:
          replicas: 2
          template: {spec: {containers: [{name: v, command: [bash, -c, "R=${HOSTNAME##*-}; vllm serve m -dpr $((R * 8))"]}]}}
        ---
        apiVersion: jobset.x-k8s.io/v1alpha2
        kind: JobSet
        metadata: {name: js}
        spec:
          replicatedJobs:
          - name: w
            template: {spec: {parallelism: 2, completions: 2, template: {spec: {containers: [
              {name: v, command: [sh, -c, 'vllm serve m --node-rank $JOB_COMPLETION_INDEX']}]}}}}
        ---
        apiVersion: apps/v1
        kind: StatefulSet
        metadata: {name: alike}
        spec: {replicas: 4, template: {spec: {containers: [{name: v, command: [vllm, serve, m]}]}}}
        """,
        name="pods.yaml",
    )
    assert [s.text("data-parallel-start-rank") for s in found.servers[:2]] == ["0", "8"]
    assert [(s.text("node-rank"), s.group.partition(" ")[0]) for s in found.servers[2:4]] == [
        ("0", "JobSet/js"),
        ("1", "JobSet/js"),
    ]
    assert len(found.servers) == 5
    assert found.servers[4].pod is not None
    assert found.servers[4].pod.replicas == 4


def test_templates_are_trouble_and_never_guessed(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        apiVersion: v1
        kind: Pod
        metadata: {name: "{{ .Release.Name }}"}
        spec:
          {{- if .Values.host }}
          hostNetwork: true
          {{- end }}
          containers:
          - name: v
            image: vllm/vllm-openai:{{ .Values.tag }}
            args: ["--model", "m", "--tensor-parallel-size", {{ .Values.tp | quote }}]
        """,
        name="pod.yaml",
    )
    assert "template" in found.trouble[0].found
    assert found.trouble[0].location is not None
    assert found.trouble[0].location.line == 3
    assert found.servers[0].options["tensor-parallel-size"].value.unresolved == ("{{ .Values.tp _ quote }}",)
    assert found.servers[0].vllm_version == ""


def test_what_the_api_server_refuses(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        apiVersion: v1
        kind: Pod
        metadata: {name: a}
        spec:
          containers:
          - name: v
            image: vllm/vllm-openai:v0.33.0
            args: [--model, m, --port, 8000]
            env: [{name: A, value: true}]
        """,
        name="pod.yaml",
    )
    places = [(str(p.location).rpartition("/")[2], p.found) for p in found.trouble]
    assert [place for place, _ in places] == ["pod.yaml:9:28", "pod.yaml:8:32"]
    assert "API server refuses" in places[0][1]


def test_flag_and_value_in_one_item(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        apiVersion: v1
        kind: Pod
        metadata: {name: a}
        spec:
          containers:
          - name: v
            image: vllm/vllm-openai:v0.33.0
            args:
            - --model
            - m
            - --tensor-parallel-size 8
            - '--eplb-config {"window_size": 10, "x": 1}'
        """,
        name="pod.yaml",
    )
    assert [problem.location and problem.location.line for problem in found.trouble] == [11, 12]
    assert texts(found.servers[0]) == {
        "model": "m", "tensor-parallel-size": "8", "eplb-config": '{"window_size": 10, "x": 1}',
    }  # fmt: skip


def test_broken_yaml_names_its_place(tmp_path: Path) -> None:
    found = read(tmp_path, "apiVersion: v1\nkind: Pod\nspec:\n  containers: [\n  - x: }\n", name="pod.yaml")
    assert found.trouble[0].location is not None
    assert found.trouble[0].location.line >= 4


def test_manifests_in_a_here_document(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        #!/bin/bash
        TP=4
        kubectl apply -f - <<EOF
        apiVersion: v1
        kind: Pod
        metadata: {name: a}
        spec: {containers: [{name: v, image: "vllm/vllm-openai:v0.33.0", args: [--model, m, -tp, "$TP"]}]}
        EOF
        """,
    )
    assert found.servers[0].number("tensor-parallel-size") == 4
    assert found.servers[0].location.line == 7


def test_compose(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        x-common: &common
          image: vllm/vllm-openai:v0.33.0
          shm_size: 16g
          ulimits: {memlock: {soft: -1, hard: -1}}
          cap_add: [IPC_LOCK]
        services:
          head:
            <<: *common
            network_mode: host
            command: >-
              --model m --tensor-parallel-size ${TP:-2}
              --eplb-config '{"window_size": 10}' --port ${PORT} --host ${OPEN}
            environment: {NCCL_DEBUG: WARN, FROM_DOTENV: }
            env_file: [ep.env]
            deploy: {resources: {reservations: {devices: [{driver: nvidia, device_ids: ["0", "1"]}]}}}
          worker:
            <<: *common
            entrypoint: [bash, -c]
            command: ["vllm serve m -tp $$TP"]
            environment: [TP=4]
          proxy: {image: nginx}
        """,
        name="compose.yaml",
        _env="PORT=8001\nFROM_DOTENV=1\n",
        ep_env="NCCL_IB_HCA=mlx5_0\n",
    )
    head, worker = found.servers
    assert (head.text("tensor-parallel-size"), head.text("port")) == ("2", "8001")
    assert head.text("eplb-config") == '{"window_size": 10}'
    assert head.options["host"].value.unresolved == ("OPEN",)
    assert head.options["tensor-parallel-size"].location.line == 11
    assert head.options["eplb-config"].location.line == 12
    assert {n: v.text for n, v in head.environment.items()} == {
        "NCCL_DEBUG": "WARN", "NCCL_IB_HCA": "mlx5_0", "FROM_DOTENV": "1",
    }  # fmt: skip
    assert head.pod is not None
    assert (head.pod.gpus, head.pod.memlock_bytes, head.pod.shm_bytes, head.pod.host_network, head.pod.capabilities) == (
        2, -1, 16 << 30, True, ("IPC_LOCK",),
    )  # fmt: skip
    assert worker.number("tensor-parallel-size") == 4


def test_a_manifest_whose_pod_has_no_server_is_a_resource_only(tmp_path: Path) -> None:
    found = read(
        tmp_path, "apiVersion: v1\nkind: Pod\nmetadata: {name: vllm-a}\nspec: {containers: [{name: n, image: nginx}]}\n"
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: s}\n", name="a.yaml",
    )  # fmt: skip
    assert not found.servers
    assert [r.name for r in found.resources] == ["s"]


def test_one_pod(tmp_path: Path) -> None:
    server = one(
        tmp_path,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - {name: v, image: vllm/vllm-openai:latest,"
        " args: [m, --port=8000]}\n",
        name="a.yaml",
    )
    assert server.model is not None
    assert (server.model.text, server.text("port"), server.vllm_version) == ("m", "8000", "")


def test_sets_of_one_name_in_two_files_are_two(tmp_path: Path) -> None:
    """Variants of one guide lie side by side: they are not one deployment."""
    text = (
        "apiVersion: leaderworkerset.x-k8s.io/v1\nkind: LeaderWorkerSet\nmetadata: {name: vllm}\nspec:\n"
        "  leaderWorkerTemplate:\n    size: 2\n    workerTemplate:\n      spec:\n        containers:\n"
        "        - {name: v, image: 'vllm/vllm-openai:v0.33.0', args: [m]}\n"
    )
    found = read(tmp_path, text, text, name="lws.yaml")
    assert [len(servers) for servers in found.deployments()] == [2, 2]
