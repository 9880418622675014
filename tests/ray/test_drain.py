"""A cloud's notice reaches Ray: a real cluster with a token, the real command and the actors, in other processes."""

import json
import os
import subprocess
import sys
import time

from metadata_server import SPOT, AwsServer
from running import ENV

# In a process of its own: the cluster has a token, and this process may be connected to the Ray of other tests.
SCRIPT = """
import logging, os, signal, subprocess, sys, time
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from raytrain.reclaim import node_watch
from raytrain.ray_core.drain import ChildDrain, DrainError

def wait(what, seconds, condition):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for: {what}"
        time.sleep(0.2)
    return found

def draining():
    return ray._private.state.state.get_draining_nodes()

def alive():
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

small = dict(num_cpus=1, object_store_memory=100 << 20)
cluster = Cluster(initialize_head=True, head_node_args=dict(include_dashboard=False, **small))
second = cluster.add_node(**small).node_id
head = cluster.head_node.node_id
ray.init(address=cluster.address, log_to_driver=False)

# Which nodes end with this machine: those of this cluster, not those of another Ray on it. A wrong token is said.
both = ChildDrain(cluster.address)
assert both.nodes() == sorted([head, second]), both.nodes()
both.close()
os.environ["RAY_AUTH_TOKEN"] = "b" * 64
wrong = ChildDrain(cluster.address)
try:
    wrong.nodes()
except DrainError as error:
    assert "oken" in str(error), error
else:
    raise AssertionError("a wrong token was let in")
wrong.close()
os.environ["RAY_AUTH_TOKEN"] = "a" * 64

# Actors on no cloud give their nodes back.
said = []
class Keep(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

logging.getLogger("raytrain.reclaim.node_watch").addHandler(Keep())
with node_watch.watch_nodes_from_run("auto", 0.3, "http://127.0.0.1:1") as watchers:
    wait("both nodes to be given up", 60, lambda: len(said) == 2 and not watchers.watched())
assert all("on no cloud" in line for line in said), said

# The command.
command = [sys.executable, "-m", "raytrain", "reclaim-watch", "--cloud", "aws", "--interval-s", "0.3"]
command += ["--address", cluster.address, "--node-id", second]
watcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
line = watcher.stderr.readline()
assert f"a notice drains Ray node {second[:8]}" in line, line

@ray.remote(num_cpus=1)
def hold(seconds):
    time.sleep(seconds)

task = hold.options(scheduling_strategy=NodeAffinitySchedulingStrategy(second, soft=False)).remote(5)
time.sleep(1)
assert not draining()
print("give notice", flush=True)
deadline_ms = wait("the drain", 20, lambda: draining().get(second))
assert 60 < deadline_ms / 1000 - time.time() <= 120, deadline_ms
assert draining().keys() == {second}
ray.get(task)  # what runs there may end
wait("the idle, drained node to leave", 30, lambda: alive() == {head})
watcher.send_signal(signal.SIGTERM)
assert watcher.wait(10) == 0
print("the command drained", flush=True)

# Actors, while the notice stands; the third node joins later.
node_watch.LOOK_FOR_NODES_S = 1.0
with node_watch.watch_nodes_from_run("auto", 0.3) as watchers:
    wait("the head to be drained", 60, lambda: draining().keys() == {head})
    third = cluster.add_node(**small).node_id
    wait("the third node to be drained", 60, lambda: third in draining())
    assert watchers.watched() == sorted([head, third])
assert watchers.watched() == []
print("the actors drained", flush=True)
ray.shutdown()
cluster.shutdown()
"""


def test_a_notice_drains_the_node() -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    env = {**ENV, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "PYTHONPATH": root}
    with AwsServer() as server:
        env["RAYTRAIN_METADATA_URL"] = server.url
        process = subprocess.Popen([sys.executable, "-c", SCRIPT], env=env, text=True, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "give notice" in line:
                    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))
                    server.pages[SPOT] = json.dumps({"action": "terminate", "time": moment})
                    break
            output = process.stdout.read()
            assert process.wait(60) == 0
        finally:
            process.terminate()  # Ray's own exit hook ends what it started
            process.wait(30)
    assert "the command drained" in output
    assert "the actors drained" in output
