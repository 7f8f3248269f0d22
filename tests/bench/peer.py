"""The works of peer.ts in PyTorch, on the same weights and inputs.

Reads a folder that peer.ts wrote: peer.json, and tensors.safetensors with
inputs and what peer.ts made of them. Then one command a line:
  check            -> {"work": largest relative difference, ...}
  run WORK THREADS -> milliseconds of one run
It computes on an NVIDIA card, in 32 bits, where peer.json asks for "cuda" and there
is one.
"""
import json
import struct
import sys
import time

import torch
import torch.nn.functional as F

folder = sys.argv[1]
with open(folder + "/peer.json") as file:
    plan = json.load(file)
CARD = plan["device"] == "cuda" and torch.cuda.is_available()
DEVICE = torch.device("cuda" if CARD else "cpu")
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

TYPES = {"F32": torch.float32, "F16": torch.float16, "F64": torch.float64,
         "I32": torch.int32}


def read(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        body = bytearray(file.read())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in TYPES:
            continue
        begin, end = entry["data_offsets"]
        dtype = TYPES[entry["dtype"]]
        flat = torch.frombuffer(
            body, dtype=dtype, offset=begin,
            count=(end - begin) // torch.empty(0, dtype=dtype).element_size())
        tensors[name] = flat.reshape(entry["shape"]).clone().to(DEVICE)
    return tensors


class Network:
    """Weights by name, and low-rank additions by the name of their layer."""

    def __init__(self, weights, low=None):
        self.w = weights
        self.low = low or {}

    def linear(self, name, x):
        y = F.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))
        if name in self.low:
            down, up = self.low[name]
            y = y + x @ down @ up
        return y

    def conv(self, name, x, stride=1):
        weight = self.w[name + ".weight"]
        return F.conv2d(x, weight, self.w[name + ".bias"], stride,
                        weight.shape[-1] // 2)

    def group(self, name, x, groups, eps):
        return F.group_norm(x, groups, self.w[name + ".weight"],
                            self.w[name + ".bias"], eps)

    def layer(self, name, x, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], self.w[name + ".weight"],
                            self.w[name + ".bias"], eps)

    def has(self, prefix):
        return any(name.startswith(prefix) for name in self.w)


def attention(q, k, v, heads, mask=None):
    def split(x):
        return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)
    q, k, v = split(q), split(k), split(v)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    y = scores.softmax(-1) @ v
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)


def text_states(net, config, ids, added=None):
    """[rows, tokens, width]; ids beyond the table are rows of `added`."""
    prefix = "text_model."
    table = net.w[prefix + "embeddings.token_embedding.weight"]
    if added is not None:
        table = torch.cat([table, added])
    x = table[ids] + net.w[
        prefix + "embeddings.position_embedding.weight"][:ids.shape[1]]
    tokens = ids.shape[1]
    mask = torch.full((tokens, tokens), float("-inf"), device=DEVICE).triu(1)
    eps = config["layer_norm_eps"]
    for i in range(config["num_hidden_layers"]):
        at = f"{prefix}encoder.layers.{i}."
        h = net.layer(at + "layer_norm1", x, eps)
        q, k, v = (net.linear(f"{at}self_attn.{p}_proj", h) for p in "qkv")
        h = attention(q, k, v, config["num_attention_heads"], mask)
        x = x + net.linear(at + "self_attn.out_proj", h)
        h = net.linear(at + "mlp.fc1", net.layer(at + "layer_norm2", x, eps))
        x = x + net.linear(at + "mlp.fc2", h * torch.sigmoid(1.702 * h))
    return net.layer(prefix + "final_layer_norm", x, eps)


def unet(net, config, x, timesteps, states):
    """x [b, c, h, w]; states [b, tokens, d] or [b, sites, tokens, d], sites in
    the order in which peer.ts counts them (`sites` of the config)."""
    groups, eps = config["norm_num_groups"], config["norm_eps"]
    heads = config["attention_head_dim"]
    channels = config["block_out_channels"]
    half = channels[0] // 2
    angles = timesteps.float()[:, None] * torch.exp(
        -torch.log(torch.tensor(10000.0)) * torch.arange(half) / half).to(DEVICE)
    temb = torch.cat([angles.cos(), angles.sin()], 1)
    temb = net.linear("time_embedding.linear_2", F.silu(
        net.linear("time_embedding.linear_1", temb)))
    temb = F.silu(temb)
    site = iter(config["sites"])

    def resnet(at, x):
        h = net.conv(at + ".conv1", F.silu(net.group(at + ".norm1", x, groups, eps)))
        h = h + net.linear(at + ".time_emb_proj", temb)[:, :, None, None]
        h = net.conv(at + ".conv2", F.silu(net.group(at + ".norm2", h, groups, eps)))
        if at + ".conv_shortcut.weight" in net.w:
            x = net.conv(at + ".conv_shortcut", x)
        return x + h

    def transformer(at, x):
        if not net.has(at + "."):
            return x
        b, c, height, width = x.shape
        h = net.conv(at + ".proj_in", net.group(at + ".norm", x, groups, 1e-6))
        h = h.permute(0, 2, 3, 1).reshape(b, height * width, c)
        depth = 0
        while net.has(f"{at}.transformer_blocks.{depth}."):
            block = f"{at}.transformer_blocks.{depth}"
            index = next(site)
            text = states if states.dim() == 3 else states[:, index]
            for name, norm in (("attn1", "norm1"), ("attn2", "norm2")):
                y = net.layer(f"{block}.{norm}", h)
                source = y if name == "attn1" else text
                p = f"{block}.{name}."
                y = attention(net.linear(p + "to_q", y),
                              net.linear(p + "to_k", source),
                              net.linear(p + "to_v", source), heads)
                h = h + net.linear(p + "to_out.0", y)
            y, gate = net.linear(block + ".ff.net.0.proj",
                                 net.layer(block + ".norm3", h)).chunk(2, -1)
            h = h + net.linear(block + ".ff.net.2", y * F.gelu(gate))
            depth += 1
        h = h.reshape(b, height, width, c).permute(0, 3, 1, 2)
        return x + net.conv(at + ".proj_out", h)

    h = net.conv("conv_in", x)
    skips = [h]
    for level in range(len(channels)):
        at = f"down_blocks.{level}"
        for j in range(config["layers_per_block"]):
            h = resnet(f"{at}.resnets.{j}", h)
            h = transformer(f"{at}.attentions.{j}", h)
            skips.append(h)
        if net.has(at + ".downsamplers"):
            h = net.conv(at + ".downsamplers.0.conv", h, 2)
            skips.append(h)
    h = resnet("mid_block.resnets.0", h)
    h = transformer("mid_block.attentions.0", h)
    h = resnet("mid_block.resnets.1", h)
    for level in range(len(channels)):
        at = f"up_blocks.{level}"
        for j in range(config["layers_per_block"] + 1):
            h = resnet(f"{at}.resnets.{j}", torch.cat([h, skips.pop()], 1))
            h = transformer(f"{at}.attentions.{j}", h)
        if net.has(at + ".upsamplers"):
            h = net.conv(at + ".upsamplers.0.conv",
                         F.interpolate(h, scale_factor=2, mode="nearest"))
    h = F.silu(net.group("conv_norm_out", h, groups, eps))
    return net.conv("conv_out", h)


def decode(net, config, z):
    """Pictures [b, 3, h, w] in [0, 1] of latents."""
    groups = config["norm_num_groups"]

    def resnet(at, x):
        h = net.conv(at + ".conv1", F.silu(net.group(at + ".norm1", x, groups, 1e-6)))
        h = net.conv(at + ".conv2", F.silu(net.group(at + ".norm2", h, groups, 1e-6)))
        if at + ".conv_shortcut.weight" in net.w:
            x = net.conv(at + ".conv_shortcut", x)
        return x + h

    h = z / config["scaling_factor"]
    if "post_quant_conv.weight" in net.w:
        h = net.conv("post_quant_conv", h)
    h = net.conv("decoder.conv_in", h)
    h = resnet("decoder.mid_block.resnets.0", h)
    at = "decoder.mid_block.attentions.0"
    b, c, height, width = h.shape
    x = net.group(at + ".group_norm", h, groups, 1e-6)
    x = x.permute(0, 2, 3, 1).reshape(b, height * width, c)
    x = attention(*(net.linear(f"{at}.to_{p}", x) for p in "qkv"), 1)
    x = net.linear(at + ".to_out.0", x)
    h = h + x.reshape(b, height, width, c).permute(0, 3, 1, 2)
    h = resnet("decoder.mid_block.resnets.1", h)
    for level in range(len(config["block_out_channels"])):
        at = f"decoder.up_blocks.{level}"
        for j in range(config["layers_per_block"] + 1):
            h = resnet(f"{at}.resnets.{j}", h)
        if net.has(at + ".upsamplers"):
            h = net.conv(at + ".upsamplers.0.conv",
                         F.interpolate(h, scale_factor=2, mode="nearest"))
    h = net.conv("decoder.conv_out", F.silu(
        net.group("decoder.conv_norm_out", h, groups, 1e-6)))
    return (h / 2 + 0.5).clamp(0, 1)


T = read(folder + "/tensors.safetensors")


def floats(path):
    return {name: x.float() for name, x in read(path).items()
            if x.is_floating_point()}


UNET, TEXT, VAE = (floats(plan[name]) for name in ("unet", "text", "vae"))
UC, TC, VC = (plan[name] for name in ("unetConfig", "textConfig", "vaeConfig"))


def nchw(x):
    return x.permute(0, 3, 1, 2).contiguous()


def forward(batch):
    with torch.no_grad():
        return unet(Network(UNET), UC, nchw(T["sample"][:batch]),
                    T["timesteps"][:batch], T["states"][:batch])


def pictures():
    """Text, DDIM with guidance, decoder: what `sample` does."""
    with torch.no_grad():
        states = text_states(Network(TEXT), TC, T["pictures.ids"].long())
        x, net = nchw(T["pictures.noise"]), Network(UNET)
        count = len(x)
        states = torch.cat([states[:1].expand(count, -1, -1), states[1:]])
        for step in plan["course"]:
            times = torch.full((2 * count,), step["timestep"], device=DEVICE)
            plain, text = unet(net, UC, torch.cat([x, x]), times, states).chunk(2)
            y = plain + plan["guidance"] * (text - plain)
            alpha, sigma = step["alpha"], step["sigma"]
            clean, noise = alpha * x - sigma * y, alpha * y + sigma * x
            clean = clean.clamp(-plan["clip"], plan["clip"])
            x = step["denoised"] * clean + step["epsilon"] * noise
        return decode(Network(VAE), VC, x)


def rows(name, batch):
    """As many rows as asked for, again from the first after the last."""
    x = T[name]
    return x[torch.arange(batch, device=DEVICE) % len(x)]


def full_step(batch):
    params = {name: x.detach().requires_grad_() for name, x in UNET.items()}
    y = unet(Network(params), UC, nchw(rows("sample", batch)),
             rows("timesteps", batch), rows("states", batch))
    loss = (y - nchw(rows("target", batch))).square().mean()
    grads = torch.autograd.grad(loss, list(params.values()))
    return dict(zip(params, grads))


def concept_step(kind, batch):
    """Gradients of a concept's tensors, by peer.ts's names."""
    params = {name[len(kind) + 7:]: x.detach().requires_grad_()
              for name, x in T.items() if name.startswith(kind + ".param.")}
    low = {"unet": {}, "textEncoder": {}}
    for name, x in params.items():
        if name.endswith(".down"):
            component, path = name[:-5].split(".", 1)
            low[component][path] = (x, params[name[:-5] + ".up"])
    added = [x for name, x in params.items() if name.startswith("embedding.")]
    ids = T[kind + ".ids"].long()
    states = text_states(Network(TEXT, low["textEncoder"]), TC, ids,
                         torch.cat(added) if added else None)
    states = states[rows(kind + ".order", batch).long()]
    noisy, times = nchw(rows("step.noisy", batch)), rows("step.timesteps", batch)
    y = unet(Network(UNET, low["unet"]), UC, noisy, times, states)
    loss = (y - nchw(rows("step.target", batch))).square().mean()
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return {name: torch.zeros_like(params[name]) if g is None else g
            for name, g in zip(params, grads)}


def closed(name):
    """(Σ G + λ·mean diag·1)⁻¹ Σ G ΔW in float64, from the rows."""
    total = right = None
    for i in range(plan["concepts"]):
        rows = T[f"{name}.rows.{i}"]
        # As many steps as features are collected in; a copy each, as they come.
        gram = sum(x.T @ x for x in (rows.double() for _ in range(plan["closed"][name])))
        delta = T[f"{name}.down.{i}"] @ T[f"{name}.up.{i}"]
        total = gram if total is None else total + gram
        right = gram @ delta if right is None else right + gram @ delta
    n = total.shape[0]
    total = total + plan["ridge"] * total.diagonal().mean() * torch.eye(n).to(total)
    return torch.cholesky_solve(right, torch.linalg.cholesky(total))


WORKS = {
    "UNet forward, batch 1": lambda: forward(1),
    "UNet forward, batch 8": lambda: forward(8),
    "UNet forward, batch 32": lambda: forward(32),
    "8 pictures, 20 steps, guidance": pictures,
    "closed form 320": lambda: closed("closed form 320"),
    "closed form 1280": lambda: closed("closed form 1280"),
    **{f"{name} step, batch {n}": lambda kind=kind, n=n: concept_step(kind, n)
       for name, kind in (("LoRA", "lora"), ("ED-LoRA", "edlora"))
       for n in plan["batches"]["concept"]},
    **{f"full UNet step, batch {n}": lambda n=n: full_step(n)
       for n in plan["batches"]["full"]},
}


def difference(a, b):
    """Largest difference, relative to the largest number."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def worst(found, work):
    prefix = f"expect.{work}."
    names = {name[len(prefix):] for name in T if name.startswith(prefix)}
    if names != set(found):
        raise SystemExit(f"{work}: other tensors: {sorted(names ^ set(found))[:4]}")
    # Against the largest gradient of all: those that are nearly 0 are noise.
    scale = max(float(T[prefix + name].abs().max()) for name in names)
    return max(float((found[name] - T[prefix + name]).abs().max()) / scale
               for name in names)


def check():
    result = {"UNet forward, batch 32": difference(
        forward(32), nchw(T["expect.forward"]))}
    work = "8 pictures, 20 steps, guidance"
    result[work] = difference(pictures(), nchw(T[f"expect.{work}"]))
    for kind, work in (("lora", "LoRA step, batch 4"),
                       ("edlora", "ED-LoRA step, batch 4")):
        result[work] = worst(concept_step(kind, 4), work)
    work = "full UNet step, batch 32"
    result[work] = worst(full_step(32), work)
    for name in ("closed form 320", "closed form 1280"):
        result[name] = difference(closed(name), T[f"expect.{name}"])
    return result


print(json.dumps({"torch": torch.__version__, "card": CARD}), flush=True)
for line in sys.stdin:
    command, *rest = line.rstrip("\n").split("\t")
    if command == "check":
        print(json.dumps(check()), flush=True)
    elif command == "run":
        torch.set_num_threads(int(rest[1]))
        begin = time.perf_counter()
        WORKS[rest[0]]()
        if CARD:
            torch.cuda.synchronize()
        print(json.dumps(1000 * (time.perf_counter() - begin)), flush=True)
