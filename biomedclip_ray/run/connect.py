"""To the cluster that is there, or to a Ray of one's own."""

from __future__ import annotations

import logging
import os
import secrets

from biomedclip_ray.run.interrupt import listen
from biomedclip_ray.run.preflight import PreflightError, check_address


def connect() -> None:
    """The cluster that RAY_ADDRESS names (a submitted job has it), else a Ray of our own that ends with
    this process.

    Raises:
        PreflightError: no cluster answers at RAY_ADDRESS.
    """
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)  # it sets its level when it is imported
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that our bar replaces its own
    logging.getLogger("ray.data.dataset").setLevel(
        logging.ERROR
    )  # it warns that nothing will run before nodes have come
    address = os.environ.get("RAY_ADDRESS", "local")
    if address != "local":
        if address != "auto":
            check_address(address)
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise PreflightError(f"RAY_ADDRESS={address}: {error}".splitlines()[0]) from error
    else:
        # Only this process and its workers know the token: nothing is written to the home folder for it. RAY_AUTH_MODE
        # set here would come too late, Ray has read it when it was imported; init turns it on and warns that it did.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    # only now: Ray's own handler of TERM, which `ray job stop`, Kubernetes and init systems send, leaves without a word
    listen()
