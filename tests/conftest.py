"""The strictest settings: two devices, no silent dtype or rank promotion."""

import os

os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2 ' + os.environ.get('XLA_FLAGS', '')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Hundreds of small programs: compiling them is most of the work, so compile them in haste.
jax.config.update('jax_disable_most_optimizations', True)
