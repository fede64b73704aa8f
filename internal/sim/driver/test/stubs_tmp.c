#include "test.h"
const struct test vmm_tests[]={{0}},  graph_tests[]={{0}}, process_tests[]={{0}};
