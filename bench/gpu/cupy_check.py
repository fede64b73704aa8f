"""CuPy, unmodified, in a slice: cupy_check.py LIMIT."""

import sys

from case import check, close, gib, need, run

cupy = need("cupy")

CHUNK = 64 * 2**20


def to_the_limit(limit):
    chunks = []
    try:
        while len(chunks) * CHUNK <= limit:
            chunks.append(cupy.full(CHUNK // 4, len(chunks), dtype="int32"))
    except cupy.cuda.memory.OutOfMemoryError:
        pass
    held = len(chunks) * CHUNK
    check(limit - 2**30 < held <= limit, f"held {held} bytes of a limit of {limit} when refused")
    for i, chunk in enumerate(chunks):
        check(bool((chunk == i).all()), f"chunk {i} changed after the refusal")
    return held


def arithmetic():
    a = cupy.random.standard_normal((512, 512))
    close((a @ a).get(), a.get() @ a.get(), "matrix product", 1e-10)
    square = cupy.ElementwiseKernel("float64 x", "float64 y", "y = x * x", "square")  # compiled here, by NVRTC
    close(square(a).get(), a.get() ** 2, "a kernel compiled at run time", 1e-12)


def pool_of_the_driver():
    """The stream-ordered allocator, which the default pool of CuPy does not use."""
    previous = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(cupy.cuda.MemoryAsyncPool().malloc)
    try:
        total = int(cupy.arange(1 << 20, dtype="int64").sum())
    finally:
        cupy.cuda.set_allocator(previous)
    check(total == (1 << 20) * ((1 << 20) - 1) // 2, f"a sum in asynchronous memory is {total}")


def in_a_slice(limit):
    free, total = cupy.cuda.runtime.memGetInfo()
    check(total == limit, f"memGetInfo says {total} bytes in all, the slice has {limit}")
    arithmetic()
    pool_of_the_driver()
    cupy.get_default_memory_pool().free_all_blocks()
    held = to_the_limit(limit)
    cupy.get_default_memory_pool().free_all_blocks()
    arithmetic()
    return f"memGetInfo says {gib(total)}, OutOfMemoryError after {gib(held)}, data intact, computes again"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("cupy_check.py: give the slice's bytes")
    run(in_a_slice, int(sys.argv[1]))
