"""Package and extras. Ranges are those whose lowest and newest releases were tested."""

from setuptools import find_packages, setup

setup(
    name="cavmae_sync_jax",
    version="0.1.0",
    description="CAV-MAE Sync (CVPR 2025) in JAX: pre-training and evaluation on TPU pods and GPUs",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["cavmae_sync_jax*", "data_prep*"]),
    install_requires=[
        "absl-py>=2.3",
        "array-record>=0.8.3,<0.9",
        "av>=17,<19",
        "etils[epath]>=1.13",
        "flax>=0.12,<0.13",
        "grain>=0.2.15,<0.3",
        "jax>=0.10,<0.13",
        "jaxtyping>=0.3.5",
        "librosa>=0.11,<0.12",
        "matplotlib>=3.10",
        "ml_collections>=1.1,<2",
        "numpy>=2.1",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "pillow>=12",
        "scipy>=1.15",
        "tensorboardX>=2.6.4",
        "tensorflow-datasets>=4.9.9,<5",
        "threadpoolctl>=3.5",
        "tqdm>=4.67",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "convert": ["torch==2.13.0", "safetensors>=0.5"],
        "beam": ["apache-beam>=2.77,<3"],
        "test": [
            "beartype>=0.21",
            "hypothesis>=6.130",
            "pytest>=8.4",
            "pytest-xdist>=3.7",
            "ruff==0.17.6",
            "soundfile>=0.13",
        ],
    },
)
