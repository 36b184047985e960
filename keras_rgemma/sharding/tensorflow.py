"""Counts the processes of a `tf.distribute.Strategy`."""

import json
import os

import tensorflow as tf


def process_count() -> int:
    """Returns the number of processes that train together, int: those of the strategy in scope, or
    of the environment variable TF_CONFIG.
    """
    resolver = tf.distribute.get_strategy().cluster_resolver
    cluster = resolver.cluster_spec().as_dict() if resolver is not None else {}
    cluster = cluster or json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    return max(1, sum(len(cluster.get(job, ())) for job in ("chief", "worker")))
