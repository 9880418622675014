"""Client for a cluster's job server: submits, lists, follows and stops jobs, with errors that say what to do."""

import asyncio
import http.client
import logging
import os
import shlex
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import raytrain
from raytrain.errors import ConfigError, ForeignMessage, TrainingError, first_line, says
from raytrain.launch import job_events

PORT = 8265  # of the dashboard, which includes the job server
ANSWER_S = 10.0  # timeout for the first answer of a job server
# Ray kills a job 3 s after asking it to stop, unless the job's metadata says otherwise; a save to an object store takes
# longer.
STOP_WAIT_S = 600
RETRY_EVERY_S, RETRIES = 2.0, 30  # when the connection breaks while a job is followed
EXIT_CODES = range(1, 126)  # of a command; a shell reports signals above
RUN_KEY, VERSION_KEY = "raytrain_run", "raytrain_version"  # in a job's metadata
NO_SUCH_COMMAND = 127  # a shell's exit code: there is no `python`


@dataclass(frozen=True)
class Job:
    """A job, as reported by the server."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    run: str
    """Folder of its run. Empty for a job that raytrain did not submit."""
    entrypoint: str
    message: str
    driver_exit_code: int | None
    started_at_s: float
    ended_at_s: float | None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in any way."""
        return self.status not in ("PENDING", "RUNNING")

    @property
    def saves(self) -> bool:
        """Whether it saves when it is stopped, and says so by an event."""
        return bool(self.run) and any(f"-m raytrain {word} " in f"{self.entrypoint} " for word in ("train", "resume"))

    @property
    def exit_code(self) -> int:
        """Exit code of the job's command, if it has one. A job that was stopped or lost counts as failed."""
        if self.status == "SUCCEEDED":
            return 0
        code = self.driver_exit_code
        return code if code is not None and code in EXIT_CODES else 1

    def end_in_words(self) -> str:
        """A sentence that says how the job ended and what to do next."""
        again = "the same command resumes from the run's newest checkpoint"
        if self.status == "SUCCEEDED":
            return f"job {self.id} is done"
        if self.status == "STOPPED":
            return f"job {self.id} was stopped; {again}"
        if self.driver_exit_code == NO_SUCH_COMMAND or (
            self.driver_exit_code is not None and says(self.message, ForeignMessage.NO_MODULE)
        ):
            return (
                f"job {self.id} failed: the cluster's `python` has no raytrain. Add it to the image of all nodes, or "
                f"install it there (pip install raytrain=={raytrain.__version__})"
            )
        if self.driver_exit_code in EXIT_CODES:  # the driver has printed the reason
            return f"job {self.id} failed with exit code {self.driver_exit_code}"
        if self.driver_exit_code is not None:  # a negative signal number, or a shell's 128 plus the number
            number = -self.driver_exit_code if self.driver_exit_code < 0 else self.driver_exit_code - 128
            return f"job {self.id} was killed by signal {number} (9 may mean: out of memory); {again}"
        return f"job {self.id} was lost: {first_line(self.message)}; {again}"


class JobServer:
    """A connection to a job server.

    Every method, the constructor included, raises ConfigError if the server can't be reached or refuses the token.
    """

    def __init__(self, address: str | None):
        """`address`: http(s)://host:port; None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS's host, or this machine."""
        self.address = _address(address)
        _see_that_someone_answers(self.address)
        _choose_auth_mode()
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # Ray prefers the environment over its argument
        with self._in_words():
            from ray.job_submission import JobSubmissionClient

            for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
                logging.getLogger(name).setLevel(logging.ERROR)
            self._client = JobSubmissionClient(self.address)

    def submit(self, job_id: str, words: list[str], archive: str, run: str, env_vars: dict[str, str]) -> None:
        """Upload the archive, and run `python -m raytrain WORDS` in it as a job with this id."""
        with self._in_words():
            self._client.submit_job(
                submission_id=job_id,
                entrypoint=shlex.join(["python", "-m", "raytrain", *words]),
                runtime_env={
                    "working_dir": archive,
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), job_events.VARIABLE: "1", **env_vars},
                },
                metadata={RUN_KEY: run, VERSION_KEY: raytrain.__version__},
            )

    def jobs(self) -> list[Job]:
        """All submitted jobs, the oldest first."""
        with self._in_words():
            found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.started_at_s)

    def look(self, job_id: str) -> Job:
        """One job. Raises ConfigError when there is none of that id."""
        with self._in_words():
            try:
                return _job(self._client.get_job_info(job_id))
            except RuntimeError:  # whatever the server has answered
                if job_id in [details.submission_id for details in self._client.list_jobs()]:
                    raise
            raise ConfigError(f"{self.address} knows no job {job_id}; see: raytrain jobs list")

    def logs(self, job_id: str) -> str:
        """All that a job has printed up to now, its events among it."""
        with self._in_words():
            return self._client.get_job_logs(job_id)

    def stop(self, job_id: str) -> bool:
        """Ask a job to save and leave, without waiting for it. Returns whether it was running."""
        with self._in_words():
            return self._client.stop_job(job_id)

    def refuse_second(self, run: str) -> None:
        """Raises ConfigError if another job already trains this run: the two drivers would conflict."""
        for job in self.jobs():
            if job.run == run and not job.is_over:
                raise ConfigError(
                    f"job {job.id} already works on {run} ({job.status}). Follow it with: raytrain jobs attach "
                    f"{job.id}; or end it with: raytrain jobs stop {job.id}"
                )

    async def tail(self, job_id: str, say: Callable[[str], None]) -> None:
        """Stream a job's output from its first line, until the job ends or the connection breaks."""
        async for text in self._client.tail_job_logs(job_id):
            say(text)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Ray's errors and those of its HTTP library, as ours."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise ConfigError(_token_refusal(self.address)) from None
        except OSError as error:  # ConnectionError, and those of requests
            raise ConfigError(_unreachable(self.address, first_line(str(error)))) from None
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"the job server at {self.address} refused: {first_line(str(error))}") from None


class Tail:
    """Forwards the output of a job once, across broken connections and interruptions."""

    def __init__(self, server: JobServer, job_id: str, say: Callable[[str], None], *, seen: int = 0):
        """`say`: called with new text, in pieces of any size. `seen`: number of characters to skip."""
        self._server, self._job_id, self._say, self._seen = server, job_id, say, seen

    def wait(self) -> Job:
        """Forward output until the job ends. May be called again after an interruption.

        Raises TrainingError if the server stays unreachable: the job itself may still be running.
        """
        from aiohttp import ClientError

        silent = 0
        while silent < RETRIES:
            with suppress(ClientError, OSError, RuntimeError):  # a proxy, a tunnel or the head; retried below
                asyncio.run(self._follow())
            silent += 1
            if silent == 2:
                self._say(f"the connection to {self._server.address} broke; retrying for a minute\n")
            with suppress(ConfigError):
                job = self._server.look(self._job_id)
                self._catch_up()
                if job.is_over:
                    return job
                silent = 0
            time.sleep(RETRY_EVERY_S)
        raise TrainingError(
            f"lost the job server at {self._server.address}. If it comes back: raytrain jobs attach {self._job_id}; if "
            "the cluster is gone, the same submission on a new one resumes from the run's newest checkpoint"
        )

    def _catch_up(self) -> None:
        """Forward the output since the last piece by a plain request, since a proxy may block the stream."""
        text = self._server.logs(self._job_id)
        if len(text) > self._seen:
            self._say(text[self._seen :])
            self._seen = len(text)

    async def _follow(self) -> None:
        passed = 0

        def new(text: str) -> None:
            nonlocal passed
            passed += len(text)
            if passed > self._seen:
                self._say(text[len(text) - min(len(text), passed - self._seen) :])
                self._seen = passed

        await self._server.tail(self._job_id, new)


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id,
        status=str(details.status.value),
        run=metadata.get(RUN_KEY, ""),
        entrypoint=details.entrypoint,
        message=details.message or "",
        driver_exit_code=details.driver_exit_code,
        started_at_s=(details.start_time or 0) / 1e3,
        ended_at_s=details.end_time / 1e3 if details.end_time else None,
    )


def _address(given: str | None) -> str:
    found = given or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not found:
        head = os.environ.get("RAY_ADDRESS", "")  # host:port of another server of the head, or a URL
        if head.startswith(("http://", "https://")):
            return head.rstrip("/")
        host = head.removeprefix("ray://").partition(":")[0]
        return f"http://{host}:{PORT}" if host not in ("", "auto", "local") else f"http://127.0.0.1:{PORT}"
    if not found.startswith(("http://", "https://")):
        raise ConfigError(
            f"--address {found}: give the job server's URL, http://HOST:{PORT} (the dashboard's port, which differs "
            "from that of `ray start`)"
        )
    return found.rstrip("/")


def _see_that_someone_answers(address: str) -> None:
    """Fail fast: Ray's own client would wait minutes for an unreachable machine."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=ANSWER_S).close()
    except urllib.error.HTTPError:
        return  # it answers; a missing token is reported later
    except http.client.HTTPException:  # another protocol, such as that of `ray start`'s port
        raise ConfigError(_unreachable(address, "what listens there does not speak HTTP")) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # Ray's client may trust other certificates (REQUESTS_CA_BUNDLE)
            raise ConfigError(_unreachable(address, str(reason))) from None


def _choose_auth_mode() -> None:
    """Send a token if there is one, even if RAY_AUTH_MODE is unset. Ray reads the mode when it is imported."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path and not os.path.isfile(path):
        raise ConfigError(f"RAY_AUTH_TOKEN_PATH {path}: there is no such file")
    default = os.path.expanduser("~/.ray/auth_token")
    has_token = os.environ.get("RAY_AUTH_TOKEN") or path or os.path.isfile(default)
    os.environ["RAY_AUTH_MODE"] = "token" if has_token else "disabled"


def _token_refusal(address: str) -> str:
    how = (
        "Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it, to the token of the cluster's head (where `ray "
        "get-auth-token` prints it)"
    )
    if os.environ["RAY_AUTH_MODE"] != "token":  # see `_choose_auth_mode`
        return f"the job server at {address} requires a token, and none was sent. {how}"
    return f"the job server at {address} rejects this token: it is that of another cluster, or an old one. {how}"


def _unreachable(address: str, reason: str) -> str:
    return (
        f"no job server answers at {address} ({reason}). Is the cluster up? It listens on port 8265 of the head, on "
        "the loopback interface unless the head was started otherwise: forward it (ssh -L 8265:127.0.0.1:8265 HEAD; "
        "ray dashboard CLUSTER.yaml; kubectl port-forward service/HEAD 8265) and give --address http://127.0.0.1:8265"
    )
