/* The program `quern`. Apart from the rest, so that tests can link everything else. */
#include "worker/cli/cli.h"

int main(int argc, char **argv) {
    return w_main(argc, argv);
}
