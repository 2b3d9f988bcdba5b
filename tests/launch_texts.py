"""Launches for tests, by hand: options and shape of vLLM 0.33.0 docs/serving/expert_parallel_deployment.md and of
public LeaderWorkerSet guides; values are our own."""

from __future__ import annotations

MODEL = "deepseek-ai/DeepSeek-V3-0324"

SINGLE = f"""#!/bin/bash
vllm serve {MODEL} \\
  --data-parallel-size 8 \\
  --enable-expert-parallel
"""

_COMMON = """  --all2all-backend deepep_low_latency \\
  --tensor-parallel-size 1 \\
  --enable-expert-parallel \\
  --data-parallel-size 16 \\
  --data-parallel-size-local 8 \\
  --data-parallel-address 192.168.1.100 \\
  --data-parallel-rpc-port 13345 \\
"""

HEAD = f"vllm serve {MODEL} \\\n{_COMMON}  --api-server-count=8\n"
SECOND = f"vllm serve {MODEL} \\\n{_COMMON}  --data-parallel-start-rank 8 \\\n  --headless\n"

EPLB = f"""vllm serve {MODEL} \\
  --tensor-parallel-size 1 \\
  --data-parallel-size 8 \\
  --enable-expert-parallel \\
  --enable-eplb \\
  --eplb-config '{{"window_size":1000,"step_interval":3000,"num_redundant_experts":2,"log_balancedness":true}}'
"""

COMMENTED = f"""vllm serve {MODEL} \\
    --tensor-parallel-size 1 \\       # Tensor parallelism across 1 GPU
    --data-parallel-size 8 \\         # Data parallelism across 8 processes
    --enable-expert-parallel         # Enable expert parallelism
"""


def _disaggregated(role: str, backend: str, host: str) -> str:
    return f"""export VLLM_NIXL_SIDE_CHANNEL_HOST={host}
vllm serve {MODEL} --enable-expert-parallel --data-parallel-size 8 --all2all-backend {backend} \\
  --kv-transfer-config '{{"kv_connector":"NixlConnector","kv_role":"{role}"}}'
"""


PREFILL_DECODE = (
    _disaggregated("kv_producer", "deepep_high_throughput", "192.168.1.100"),
    _disaggregated("kv_consumer", "deepep_low_latency", "192.168.1.101"),
)


def wide_ep() -> str:
    """Decode side of a wide-EP guide with its well-known mistakes."""
    return f"""apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
metadata: {{name: wide-ep-decode}}
spec:
  replicas: 1
  leaderWorkerTemplate:
    size: 2
    workerTemplate:
      spec:
        volumes: [{{name: dshm, emptyDir: {{medium: Memory, sizeLimit: 2Gi}}}}]
        containers:
        - name: vllm
          image: vllm/vllm-openai:v0.33.0
          securityContext: {{capabilities: {{add: [IPC_LOCK]}}}}
          command: [/bin/bash, -c]
          args:
          - |-
            find /dev/shm -type f -delete
            START_RANK=$(( ${{LWS_WORKER_INDEX:-0}} * DP_SIZE_LOCAL ))
            exec vllm serve {MODEL} --port 8200 --enable-expert-parallel \\
              --data-parallel-hybrid-lb --data-parallel-size $((LWS_GROUP_SIZE * DP_SIZE_LOCAL)) \\
              --data-parallel-size-local $DP_SIZE_LOCAL --data-parallel-address ${{LWS_LEADER_ADDRESS}} \\
              --data-parallel-rpc-port 5555 --data-parallel-start-rank $START_RANK \\
              --max-num-batched-tokens 256 --all2all-backend deepep_low_latency \\
              --kv_transfer_config '{{"kv_connector":"NixlConnector",
                                     "kv_role":"kv_consumer"}}'
          env:
          - {{name: DP_SIZE_LOCAL, value: '8'}}
          - {{name: VLLM_MOE_DP_CHUNK_SIZE, value: '512'}}
          - {{name: NVSHMEM_DISABLED_GDRCOPY, value: '1'}}
          - {{name: NVSHMEM_REMOTE_TRANSPORT, value: ibgda}}
          - {{name: DEEP_EP_DEVICE_TO_HCA_MAPPING, value: '0:mlx5_0:1'}}
          - {{name: GLOO_SOCKET_IFNAME, value: eth0}}
          - name: VLLM_NIXL_SIDE_CHANNEL_HOST
            valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}
          startupProbe: {{httpGet: {{path: /health, port: 8200}}, periodSeconds: 1, failureThreshold: 2700}}
          livenessProbe: {{httpGet: {{path: /health, port: 8200}}, periodSeconds: 30, failureThreshold: 3}}
          resources: {{limits: {{nvidia.com/gpu: '8', rdma/ib: '1'}}}}
          volumeMounts: [{{mountPath: /dev/shm, name: dshm}}]
---
apiVersion: v1
kind: Service
metadata: {{name: wide-ep-proxy}}
spec: {{ports: [{{port: 8000}}]}}
"""
