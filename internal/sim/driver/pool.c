#include "sim.h"
void pool_trim_all(struct simdev *d) { (void)d; }
