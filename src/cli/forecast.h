/*
 * A forecast of a migration (ferry check), alone or beside what came of it (ferry migrations show).
 */
#ifndef FERRY_CLI_FORECAST_H
#define FERRY_CLI_FORECAST_H

#include "cli/command.h"

/* FORECAST as the API has it; NULL or JSON null: prints nothing. MIGRATION: one that has ended, or NULL. */
void forecast_print(struct cli *cli, const json_t *forecast, const json_t *migration);

#endif
