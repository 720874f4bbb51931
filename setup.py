"""Package and extras.

A range begins with the release that the suite runs with and ends before the next one that may break
an interface; results/README.md says which releases of Python and JAX have passed it.
"""

from setuptools import find_packages, setup

setup(
    name="cavmae_sync_jax",
    version="0.1.0",
    description="CAV-MAE Sync (CVPR 2025) in JAX: pre-training and evaluation on TPU pods and GPUs",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["cavmae_sync_jax*", "data_prep*"]),
    install_requires=[
        "absl-py>=2.5,<3",
        "array-record>=0.8.6,<0.9",
        "av>=18.1,<19",
        "etils[epath]>=1.15,<2",
        "flax>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "jax>=0.10.2,<0.13",
        "jaxtyping>=0.3.11,<0.4",
        "librosa>=0.11,<0.12",
        "matplotlib>=3.11,<4",
        "ml_collections>=1.1,<2",
        "numpy>=2.4,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "pebble>=5.2,<6",
        "pillow>=12,<14",  # Apache Beam wants 12
        "scikit-learn>=1.7,<2",
        "scipy>=1.17,<2",
        "simplejpeg>=1.9,<2",
        "tensorboardX>=2.6.5,<3",
        "tensorflow-datasets>=4.9.10,<5",
        "threadpoolctl>=3.8,<4",
        "tqdm>=4.70,<5",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        # For workdirs in a bucket: files by gcsfs, TensorBoard's by Google's own.
        "gcs": ["etils[epath-gcs]>=1.15,<2", "google-cloud-storage>=3,<4"],
        "convert": ["torch==2.13.0", "safetensors>=0.8,<0.9"],
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
