"""A training script as it is written for the published AGMH code, with only its import line changed.

    -from <the published modules> import agmh, Feat_Loss, ADSH_Loss, solve_dcc, mean_average_precision
    +from agmh_fast.official import agmh, Feat_Loss, ADSH_Loss, solve_dcc, mean_average_precision

Everything below the imports is such a script: dense similarity matrix, 4-tuple outputs, attention maps handed from the
model to the loss. What it gains comes from the swap alone: all descriptors in one convolution, no attention map formed.
The images are made up (one texture a class, with noise), so it runs anywhere:

    python examples/published_script.py --iterations 2 --epochs 2
"""

import argparse

import torch
from torch.utils.data import DataLoader, TensorDataset

from agmh_fast.official import ADSH_Loss, Feat_Loss, agmh, mean_average_precision, solve_dcc


def made_up_images(classes, each, size, seed):
    """(images, one-hot labels): every class is a texture, every image a shifted, noisy copy of it."""
    textures = torch.rand(classes, 3, size, size, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(each)
    shifts = torch.randint(size, (len(labels), 2), generator=generator).tolist()
    images = torch.stack([textures[c].roll(s, (1, 2)) for c, s in zip(labels.tolist(), shifts, strict=True)])
    images = images + 0.1 * torch.randn(images.shape, generator=generator)
    return images, torch.nn.functional.one_hot(labels, classes).float()


def generate_code(model, images, code_length, device):
    """±1 codes of images, a batch at a time."""
    model.eval()
    codes = torch.zeros(len(images), code_length)
    with torch.no_grad():
        for start in range(0, len(images), 32):
            embedding, _, _, _ = model(images[start : start + 32].to(device), is_train=False)
            codes[start : start + 32] = embedding.sign().cpu()
    return codes


def train(args):
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    database, database_labels = made_up_images(args.classes, args.images, args.size, seed=1)
    queries, query_labels = made_up_images(args.classes, 2, args.size, seed=2)
    num_train, code_length, gamma = len(database), args.code_length, 200

    model = agmh(code_length, args.classes, att_size=1, feat_size=2048, device=device, pretrained=False).to(device)
    feature_loss, criterion = Feat_Loss(), ADSH_Loss(code_length, gamma)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4, nesterov=True)

    B = torch.randn(num_train, code_length).to(device)
    U = torch.zeros(args.samples, code_length).to(device)
    for iteration in range(args.iterations):
        sampled = torch.randperm(num_train)[: args.samples]
        S = (database_labels[sampled] @ database_labels.T > 0).float() * 2 - 1
        r = S.sum() / (1 - S).sum()
        S = (S * (1 + r) - r).to(device)

        model.train()
        total = 0.0
        loader = DataLoader(
            TensorDataset(database[sampled], torch.arange(args.samples)), args.batch_size, shuffle=True, drop_last=True
        )
        for _ in range(args.epochs):
            for images, index in loader:
                optimizer.zero_grad()
                embedding, back_feat, feat_group, attn_group = model(images.to(device), is_train=True)
                U[index] = embedding.detach()
                pairwise, quantization = criterion(embedding, B, S[index], sampled[index])
                dispersion = feature_loss(back_feat, feat_group, attn_group, device)
                loss = pairwise + quantization + 0.5 * dispersion
                loss.backward()
                optimizer.step()
                total += loss.item()

        expand_U = torch.zeros(B.shape, device=device)
        expand_U[sampled] = U
        B = solve_dcc(B, U, expand_U, S, code_length, gamma)
        print(f"[{iteration + 1}/{args.iterations}] loss {total / args.epochs / len(loader):.4f}")

    query_code = generate_code(model, queries, code_length, device)
    score = mean_average_precision(query_code, B.cpu(), query_labels, database_labels, device, -1)
    print(f"mAP {score:.4f}")
    return score


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("code-length", 12),
        ("classes", 4),
        ("images", 12),
        ("size", 64),
        ("samples", 32),
        ("batch-size", 8),
        ("iterations", 4),
        ("epochs", 3),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=0.01)
    train(parser.parse_args())
