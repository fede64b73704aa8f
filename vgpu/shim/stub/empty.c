/* Stands for the real driver's library when the shim is linked: only its name is recorded. */
typedef int kerf_nothing;
