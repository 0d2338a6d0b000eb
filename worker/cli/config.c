/* quern config show | reference */
#include <stdio.h>

#include "worker/cli/cli.h"
#include "worker/daemon/config.h"

static bool origin, defaults;
static struct w_option show_options[] = {
    {"origin", W_OPT_FLAG, &origin, NULL, "say where each value comes from", 0, 0},
    {"defaults", W_OPT_FLAG, &defaults, NULL,
     "the defaults, whatever is configured here: a file to start from", 0, 0},
    {0},
};

static int run_show(int argc, char **argv) {
    (void)argv;
    if (argc) return w_report(W_EXIT_USAGE, "usage", NULL, "config show takes no words");
    if (defaults)
        w_config_dump_defaults(stdout);
    else if (origin)
        w_config_show_origin(w_config(), stdout);
    else
        w_config_dump(w_config(), stdout);
    return W_EXIT_OK;
}

static const struct w_command show = {
    .name = "config show",
    .args = "[--origin | --defaults] [settings]",
    .summary = "Print the configuration that a worker would use here",
    .options = show_options,
    .takes_config = true,
    .run = run_show,
};
W_COMMAND(show);

static int run_reference(int argc, char **argv) {
    (void)argc, (void)argv;
    w_config_reference(stdout);
    return W_EXIT_OK;
}

static const struct w_command reference = {
    .name = "config reference",
    .args = "",
    .summary = "Print the reference page of all settings (Markdown)",
    .run = run_reference,
};
W_COMMAND(reference);
