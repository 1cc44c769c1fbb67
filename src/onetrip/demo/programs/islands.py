"""The program of the demo's comparison: seven calls of tools. Cells begin with `# %%`."""

# %% The warmest island
import asyncio

async def forecast(island):
    station = await get_station(island=island)
    return await get_forecast(station=station["id"])

islands = await list_islands()
forecasts = await asyncio.gather(*map(forecast, islands))
high, island = max((found["high_c"], island) for found, island in zip(forecasts, islands))
{"island": island, "high_c": high}
