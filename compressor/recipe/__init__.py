"""What a user asked for, as frozen data: stages, rules, budgets, trainings, cuts and gates."""
