/* The program `quern`: picks the subcommand and runs it. Each subcommand is one file in worker/cli/. */
#include <stdio.h>

int main(void) {
    puts("quern " QUERN_VERSION);
    return 0;
}
