"""Supervise worker processes: uvicorn's supervisor, which replaces a dead worker at once, and leaves no orphans."""

import multiprocessing
import os
import signal
import threading

from uvicorn.supervisors import Multiprocess


class Supervisor(Multiprocess):
    """Start worker processes that share sockets, and replace those that die or hang."""

    def keep_subprocess_alive(self) -> None:
        """Ping each worker, and replace it if it is dead or does not answer."""
        for process in self.processes:
            # The worker has its own copy of this end of the pipe. As long as the supervisor holds another one, the
            # pipe stays open when the worker dies, and a ping waits for the answer until the timeout.
            process.child_conn.close()
        super().keep_subprocess_alive()


def end_with_supervisor() -> None:
    """Let this worker finish its requests and end if its supervisor is killed, instead of keeping the port."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:  # not a worker
        return

    def wait() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
