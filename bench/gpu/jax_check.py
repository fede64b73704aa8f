"""JAX, unmodified, in a slice, with its preallocation on: jax_check.py LIMIT."""

import sys

from case import Failed, check, close, gib, need, run

jax = need("jax")
import numpy  # noqa: E402  (JAX needs it; after the skip)


def preallocation(device, limit):
    """JAX takes three quarters of what it believes to be the card: it must be of the slice."""
    stats = device.memory_stats() or {}
    pool = stats.get("bytes_limit")
    check(pool is not None, "JAX tells no bytes_limit: cannot see what it preallocated")
    check(limit // 4 < pool <= limit, f"JAX preallocates {pool} bytes in a slice of {limit}")
    return pool


def product_and_gradient():
    random = numpy.random.default_rng(1)
    a, b = random.standard_normal((512, 512), "float32"), random.standard_normal((512, 512), "float32")
    with jax.default_matmul_precision("highest"):
        close(jax.jit(lambda x, y: x @ y)(a, b), a.astype("float64") @ b, "matrix product", 1e-4)
    gradient = jax.jit(jax.grad(lambda x: (x**3).sum()))(a)
    close(gradient, 3 * a.astype("float64") ** 2, "gradient", 1e-4)


def refusal(limit):
    """More than the slice in one array is refused, and the process goes on."""
    try:
        jax.numpy.ones((limit // 4 + 1024,), "float32").block_until_ready()
    except Exception as error:  # the class moved between versions: jax.errors, jaxlib.xla_extension
        check("RESOURCE_EXHAUSTED" in str(error), f"an array beyond the slice gave {type(error).__name__}: {str(error)[:80]}")
        return
    raise Failed(f"JAX got an array of more than {limit} bytes")


def in_a_slice(limit):
    device = jax.devices()[0]
    check(device.platform in ("gpu", "cuda"), f"JAX runs on {device.platform}")
    pool = preallocation(device, limit)
    product_and_gradient()
    refusal(limit)
    product_and_gradient()
    return f"preallocates {gib(pool)} of {gib(limit)}, computes, RESOURCE_EXHAUSTED beyond the slice, computes again"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("jax_check.py: give the slice's bytes")
    run(in_a_slice, int(sys.argv[1]))
