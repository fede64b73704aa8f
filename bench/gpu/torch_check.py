"""PyTorch, unmodified, in a slice: torch_check.py memory|oom LIMIT, train, graphs."""

import sys

from case import check, close, gib, need, run

torch = need("torch")

CHUNK = 64 * 2**20


def memory(limit):
    """What PyTorch sees of the card is the slice."""
    free, total = torch.cuda.mem_get_info()
    properties = torch.cuda.get_device_properties(0)
    check(total == limit, f"mem_get_info says {total} bytes in all, the slice has {limit}")
    check(properties.total_memory == limit, f"the properties say {properties.total_memory} bytes, the slice has {limit}")
    check(0 < free <= total, f"{free} bytes free of {total}")
    return f"{properties.name}: mem_get_info and the properties say {gib(total)}, {gib(free)} free"


def fill_to_refusal():
    chunks = []
    try:
        while True:
            chunk = torch.empty(CHUNK // 4, dtype=torch.int32, device="cuda")
            chunk.fill_(len(chunks))
            chunks.append(chunk)
    except torch.cuda.OutOfMemoryError as refusal:
        return chunks, str(refusal).splitlines()[0]


def oom(limit):
    """Allocates to the limit, is refused, keeps its data, frees, and allocates again."""
    chunks, refusal = fill_to_refusal()
    held = len(chunks) * CHUNK
    check(held <= limit, f"got {held} bytes of a limit of {limit}")
    # A context takes a few hundred MiB of the slice; more than a GiB missing is no exact limit.
    check(held > limit - 2**30, f"refused at {held} bytes of {limit}: {refusal}")
    for i, chunk in enumerate(chunks):
        check(bool((chunk == i).all()), f"chunk {i} changed after the refusal")
    count = len(chunks)
    del chunks, chunk
    torch.cuda.empty_cache()
    again, _ = fill_to_refusal()
    check(len(again) == count, f"{count} chunks the first time, {len(again)} after all were freed")
    return f"OutOfMemoryError after {gib(held)} of {gib(limit)}, data intact, the same again after freeing"


def net():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1)).cuda()


def train():
    """A small net learns a function of random points, in float32 and under bf16 autocast."""
    losses = {}
    for precision in (torch.float32, torch.bfloat16):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        history = []
        for _ in range(300):
            x = torch.randn(1024, 64, device="cuda")
            wanted = torch.sin(x[:, :1]) + x[:, 1:2]
            with torch.autocast("cuda", dtype=precision, enabled=precision is not torch.float32):
                loss = torch.nn.functional.mse_loss(model(x), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        check(history[-1] < history[0] / 4, f"{precision}: loss {history[0]:.3f} → {history[-1]:.3f}: it did not learn")
        losses[precision] = f"{str(precision).removeprefix('torch.')} loss {history[0]:.3f} → {history[-1]:.3f}"
    return "; ".join(losses.values())


def graphs():
    """Capture and replay give what eager execution gives, for many inputs."""
    model = net()
    place = torch.randn(256, 64, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            model(place)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        result = model(place)
    replays = 200
    for _ in range(replays):
        x = torch.randn(256, 64, device="cuda")
        place.copy_(x)
        result.fill_(float("nan"))
        graph.replay()
        with torch.no_grad():
            wanted = model(x)
        close(result.cpu().numpy(), wanted.cpu().numpy(), "replay against eager", 1e-3)
    return f"{replays} replays of a captured graph equal eager execution"


if __name__ == "__main__":
    cases = {"memory": memory, "oom": oom, "train": train, "graphs": graphs}
    if len(sys.argv) < 2 or sys.argv[1] not in cases:
        sys.exit(f"torch_check.py: give one of {', '.join(cases)}")
    check_cuda = torch.cuda.is_available()
    if not check_cuda:
        print("PyTorch sees no GPU")
        sys.exit(1)
    run(cases[sys.argv[1]], *map(int, sys.argv[2:]))
